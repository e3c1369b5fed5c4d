"""Names, groups and their limits: what is legal, what is refused and what the refusal says."""

import pytest
import torch

from lct_deploy.architecture import (
    FAMILIES,
    AttentionConfig,
    ModelConfig,
    arch_names,
    check_config,
    default_groups,
    legal_groups,
    model_config,
    parse_arch,
    small_group_warning,
)
from lct_deploy.errors import ArchitectureError, UsageError
from lct_deploy.models import LinearContextTransform, build_model

KINDS = ("", "se_", "se_plus_", "lct_")


def test_every_depth_has_every_attention() -> None:
    expected = {f"{kind}resnet{depth}" for depth in (18, 20, 26, 34, 50, 101, 152) for kind in KINDS}
    assert set(arch_names()) == expected
    assert len(arch_names()) == len(expected)


@pytest.mark.parametrize("name", arch_names())
def test_a_name_says_depth_and_attention(name: str) -> None:
    family, kind = parse_arch(name)
    prefix, depth = name.split("resnet")
    assert family.depth == int(depth)
    assert kind == (prefix.removesuffix("_") or "none")


@pytest.mark.parametrize(
    ("name", "closest"),
    [
        ("lct_resnet51", "lct_resnet50"),
        ("LCT-resnet50", "lct_resnet50"),
        ("resnet-50", "resnet50"),
        ("seplus_resnet18", "se_plus_resnet18"),
        ("lct_resnet", "lct_resnet"),
    ],
)
def test_an_unknown_name_is_answered_with_the_closest(name: str, closest: str) -> None:
    with pytest.raises(ArchitectureError, match=f"did you mean {closest}") as caught:
        parse_arch(name)
    assert f"unknown architecture '{name}'" in str(caught.value)
    assert "lct-deploy models" in str(caught.value)


@pytest.mark.parametrize("name", ["", "vgg16", "50"])
def test_a_name_that_is_close_to_none_suggests_none(name: str) -> None:
    with pytest.raises(ArchitectureError) as caught:
        parse_arch(name)
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("depth", "groups"), [(18, 16), (20, 4), (26, 64), (34, 16), (50, 64), (101, 64), (152, 64)]
)
def test_default_groups(depth: int, groups: int) -> None:
    assert default_groups(FAMILIES[depth]) == groups
    assert model_config(f"lct_resnet{depth}").attention.groups == groups
    assert small_group_warning(model_config(f"lct_resnet{depth}")) is None


def test_the_papers_defaults() -> None:
    assert model_config("lct_resnet50").attention == AttentionConfig(kind="lct", groups=64, epsilon=1e-5)
    assert model_config("lct_resnet50").num_classes == 1000
    assert model_config("se_resnet50").attention.reduction == 16


LEGAL = {18: [1, 2, 4, 8, 16, 32], 20: [1, 2, 4, 8], 50: [1, 2, 4, 8, 16, 32, 64, 128]}


@pytest.mark.parametrize("depth", LEGAL)
def test_legal_groups(depth: int) -> None:
    assert legal_groups(FAMILIES[depth].stage_channels) == LEGAL[depth]


@pytest.mark.parametrize(("depth", "groups"), [(depth, g) for depth in LEGAL for g in LEGAL[depth]])
def test_every_legal_group_count_builds(depth: int, groups: int) -> None:
    with torch.device("meta"):
        network = build_model(model_config(f"lct_resnet{depth}", groups=groups))
    blocks = list(network.attention_blocks().values())
    assert len(blocks) == FAMILIES[depth].attention_blocks
    assert all(isinstance(block, LinearContextTransform) and block.groups == groups for block in blocks)


@pytest.mark.parametrize("arch", ["lct_resnet18", "se_plus_resnet18"])
@pytest.mark.parametrize("groups", [3, 7, 48, 65, 128, 10**9])
def test_groups_that_do_not_divide_name_the_layer_and_the_legal_values(arch: str, groups: int) -> None:
    with pytest.raises(ArchitectureError) as caught:
        model_config(arch, groups=groups)
    assert f"layer1.0.attn: 64 channels do not divide into {groups} groups" in str(caught.value)
    assert "legal group counts are 1, 2, 4, 8, 16, 32" in str(caught.value)


@pytest.mark.parametrize(
    ("arch", "groups"), [("lct_resnet18", 64), ("lct_resnet50", 256), ("lct_resnet20", 16)]
)
def test_one_channel_a_group_is_refused(arch: str, groups: int) -> None:
    with pytest.raises(ArchitectureError, match="one channel a group") as caught:
        model_config(arch, groups=groups)
    assert str(caught.value).startswith("layer1.0.attn:")
    assert "legal group counts are 1, 2" in str(caught.value)


@pytest.mark.parametrize(
    ("arch", "groups", "size"),
    [("lct_resnet50", 128, 2), ("lct_resnet18", 32, 2), ("se_plus_resnet20", 8, 2)],
)
def test_two_channels_a_group_warn(arch: str, groups: int, size: int) -> None:
    warning = small_group_warning(model_config(arch, groups=groups))
    assert warning is not None
    assert f"{groups} groups leave {size} channels a group" in warning
    assert "did not converge" in warning


@pytest.mark.parametrize("arch", ["resnet50", "se_resnet50"])
def test_groups_mean_nothing_without_normalisation(arch: str) -> None:
    assert small_group_warning(model_config(arch, groups=256)) is None
    assert model_config("lct_resnet50", groups=3, normalize=False).attention.groups == 3


@pytest.mark.parametrize(
    "values",
    [
        {"groups": 0},
        {"groups": -4},
        {"num_classes": 0},
        {"epsilon": 0.0},
        {"epsilon": -1e-5},
        {"epsilon": float("nan")},
        {"epsilon": float("inf")},
        {"stride_placement": "v2"},
    ],
)
def test_values_that_no_network_has_are_refused_by_name(values: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(values))):
        model_config("lct_resnet18", **values)  # pyright: ignore[reportArgumentType]


def test_a_name_and_an_attention_that_differ_are_refused() -> None:
    config = ModelConfig(arch="resnet18", num_classes=7, attention=AttentionConfig(kind="lct", groups=16))
    with pytest.raises(ArchitectureError, match="resnet18 has attention 'none', not 'lct'"):
        check_config(config)
    with pytest.raises(ArchitectureError, match="not 'lct'"):
        build_model(config)
