"""Weights and flags that do not agree: each disagreement is named, none is guessed away."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from lct_deploy.architecture import model_config
from lct_deploy.atomic import sha256_file
from lct_deploy.checkpoint import LoadOptions, load_checkpoint
from lct_deploy.errors import ArchitectureError, CheckpointError
from lct_deploy.models import ResNet, build_model
from tests.conftest import random_network

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def lct() -> ResNet:
    return random_network(model_config("lct_resnet20", num_classes=4))


@pytest.fixture(scope="module")
def plain() -> ResNet:
    return random_network(model_config("resnet20", num_classes=4))


def saved(state: dict[str, Tensor], directory: Path) -> Path:
    torch.save(state, directory / "ckpt.pt")
    return directory / "ckpt.pt"


def refused(path: Path, **options: object) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, LoadOptions.model_validate(options))
    return str(caught.value)


def hollow(arch: str, directory: Path) -> Path:
    """A file with every tensor of a large network, each of them one stored zero."""
    with torch.device("meta"):
        state = build_model(model_config(arch)).state_dict()
    return saved({k: torch.zeros((), dtype=v.dtype).expand(v.shape) for k, v in state.items()}, directory)


def test_everything_that_does_not_fit_is_listed_at_once(tmp_path: Path, lct: ResNet) -> None:
    state = lct.state_dict()
    state["module.layer1.0.attn.ww"] = state.pop("layer1.0.attn.w")
    state["layer2.0.conv1.wieght"] = state.pop("layer2.0.conv1.weight")
    state["layer3.0.bn1.bias"] = torch.zeros(63)
    state["module.fc.bias"] = state.pop("fc.bias")[:3]
    state["layer3.1.conv1.weight"] = state["layer3.1.conv1.weight"].to(torch.int8)
    del state["layer1.1.bn2.running_var"]
    state["head.scale"] = torch.ones(1)
    message = refused(saved(state, tmp_path))
    head, *lines = message.splitlines()
    assert head == f"{tmp_path / 'ckpt.pt'}: 9 keys do not fit:"
    assert sorted(" ".join(line.split()) for line in lines) == [
        "missing layer1.0.attn.w (closest: module.layer1.0.attn.ww)",
        "missing layer1.1.bn2.running_var",
        "missing layer2.0.conv1.weight (closest: layer2.0.conv1.wieght)",
        "shape layer3.0.bn1.bias: (63,) in the file, (64,) expected",
        "shape module.fc.bias: (3,) in the file, (4,) expected",
        "type layer3.1.conv1.weight: torch.int8 is no weight's type",
        "unexpected head.scale",
        "unexpected layer2.0.conv1.wieght (closest: layer2.0.conv1.weight)",
        "unexpected module.layer1.0.attn.ww (closest: layer1.0.attn.w)",
    ]


def test_a_name_that_is_taken_is_no_closest_match(tmp_path: Path, lct: ResNet) -> None:
    path = saved(lct.state_dict() | {"fc.bias2": torch.zeros(4)}, tmp_path)
    assert refused(path) == f"{path}: 1 keys do not fit:\n  unexpected  fc.bias2"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", ["layer1.0.attn.w", "bn1.running_var", "fc.bias"])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, lct: ResNet, value: float, key: str) -> None:
    state = {name: tensor.clone() for name, tensor in lct.state_dict().items()}
    state[key][0] = value
    assert f"NaN or infinity in {key} (1 tensors)" in refused(saved(state, tmp_path))


def test_float64_weights_that_float32_cannot_hold(tmp_path: Path, lct: ResNet) -> None:
    state = lct.state_dict() | {"fc.bias": torch.tensor([1e300, 0.0, 0.0, 0.0], dtype=torch.float64)}
    assert "NaN or infinity in fc.bias" in refused(saved(state, tmp_path))


def test_assumptions_are_said_aloud(tmp_path: Path, lct: ResNet, plain: ResNet) -> None:
    path = saved(lct.state_dict(), tmp_path)
    assert load_checkpoint(path).notes == (
        "groups is not in the weights: assuming 4",
        "epsilon is not in the weights: assuming 1e-05",
    )
    assert load_checkpoint(path).metadata is None
    assert load_checkpoint(path).sha256 == sha256_file(path)
    assert load_checkpoint(path, LoadOptions(groups=4, epsilon=1e-5)).notes == ()
    assert load_checkpoint(saved(plain.state_dict(), tmp_path)).notes == ()


def test_flags_that_the_weights_leave_open_are_taken(tmp_path: Path, lct: ResNet) -> None:
    attention = lct.config.attention.model_copy(update={"groups": 2, "epsilon": 0.1})
    other = build_model(lct.config.model_copy(update={"attention": attention})).eval()
    other.load_state_dict(lct.state_dict())
    loaded = load_checkpoint(saved(lct.state_dict(), tmp_path), LoadOptions(groups=2, epsilon=0.1))
    assert torch.equal(loaded.model(IMAGES), other(IMAGES))
    assert not torch.equal(loaded.model(IMAGES), lct(IMAGES))


def test_small_groups_are_noted(tmp_path: Path, lct: ResNet) -> None:
    notes = load_checkpoint(saved(lct.state_dict(), tmp_path), LoadOptions(groups=8)).notes
    assert any("8 groups leave 2 channels a group" in note for note in notes)


@pytest.mark.parametrize("groups", [3, 5, 64])
def test_groups_that_do_not_divide(tmp_path: Path, lct: ResNet, groups: int) -> None:
    with pytest.raises(ArchitectureError, match=r"layer1\.0\.attn: 16 channels do not divide") as caught:
        load_checkpoint(saved(lct.state_dict(), tmp_path), LoadOptions(groups=groups))
    assert "legal group counts are 1, 2, 4, 8" in str(caught.value)


@pytest.mark.parametrize(
    ("weights", "arch"),
    [
        ("resnet50", "lct_resnet50"),
        ("lct_resnet50", "resnet50"),
        ("lct_resnet50", "lct_resnet101"),
        ("se_resnet50", "lct_resnet50"),
        ("lct_resnet50", "se_plus_resnet50"),
    ],
)
def test_an_architecture_that_the_weights_contradict(tmp_path: Path, weights: str, arch: str) -> None:
    message = refused(hollow(weights, tmp_path), arch=arch)
    assert f"--arch {arch} contradicts the weights, which are those of {weights}" in message
    assert f"drop --arch, or give --arch {weights}" in message


def test_an_architecture_that_does_not_exist(tmp_path: Path, lct: ResNet) -> None:
    with pytest.raises(ArchitectureError, match="did you mean lct_resnet20"):
        load_checkpoint(saved(lct.state_dict(), tmp_path), LoadOptions(arch="lct-resnet-20"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"num_classes": 10}, "--num-classes 10 contradicts the weights, which says 4"),
        ({"groups": 32}, "--groups 32 contradicts the weights of resnet20"),
        ({"epsilon": 1e-3}, "--epsilon 0.001 contradicts the weights of resnet20"),
        ({"stride_placement": "caffe"}, "--stride-placement caffe contradicts the weights of resnet20"),
    ],
)
def test_flags_that_mean_nothing_to_a_plain_network(
    tmp_path: Path, plain: ResNet, options: dict[str, object], reason: str
) -> None:
    assert reason in refused(saved(plain.state_dict(), tmp_path), **options)


@pytest.mark.parametrize(
    "values", [{"epsilon": float("inf")}, {"epsilon": 0}, {"groups": 0}, {"weights": "best"}]
)
def test_flags_that_are_no_values(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(values))):
        LoadOptions.model_validate(values)
