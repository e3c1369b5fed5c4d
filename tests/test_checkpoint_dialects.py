"""Other people's checkpoints: every spelling that is promised loads to the logits of the original."""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from lct_deploy.architecture import FAMILIES, arch_name, model_config
from lct_deploy.checkpoint import LoadedCheckpoint, LoadOptions, load_checkpoint
from lct_deploy.checkpoint.inference import infer, infer_classes
from lct_deploy.errors import CheckpointError
from lct_deploy.models import ResNet, build_model
from tests.conftest import random_network

State = dict[str, Tensor]

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))


@functools.cache
def lct() -> ResNet:
    return random_network(model_config("lct_resnet20", num_classes=4))


@functools.cache
def se() -> ResNet:
    return random_network(model_config("se_resnet20", num_classes=4))


def save(content: Any, path: Path) -> Path:
    """Written by the library that the suffix names; `.legacy.pt` in torch's format before zip."""
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in content.items()}, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=not path.name.endswith(".legacy.pt"))
    return path


def loads_as(original: ResNet, path: Path, options: LoadOptions | None = None) -> LoadedCheckpoint:
    loaded = load_checkpoint(path, options)
    assert torch.equal(loaded.model(IMAGES), original(IMAGES))
    assert not loaded.model.training
    return loaded


def renamed(state: State, change: Callable[[str], str]) -> State:
    return {change(key): value for key, value in state.items()}


def lct_spelling(state: State, module: str, names: tuple[str, str], shape: tuple[int, ...]) -> State:
    """LCT's parameters as `module.names`, with `shape` around the -1 that stands for C."""
    spelled: State = {}
    for key, value in state.items():
        prefix, _, name = key.partition(".attn.")
        if name:
            spelled[f"{prefix}.{module}.{names['wb'.index(name)]}"] = value.reshape(shape)
        else:
            spelled[key] = value
    return spelled


CONTAINERS: dict[str, Callable[[State], Any]] = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "best": 0.5},
    "model": lambda state: {"model": state, "optimizer": {"state": {}}},
    "model_state": lambda state: {"model_state": state},
    "ema": lambda state: {"ema": state},
    "model.state_dict": lambda state: {"model": {"state_dict": state}},
    "ema.state_dict": lambda state: {"ema": {"state_dict": state, "decay": 0.999}},
}
PREFIXES = ["", "module.", "backbone.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.backbone."]
MODULES = ["lct", "attn", "att", "se", "ca"]
NAMES = [("w", "b"), ("weight", "bias")]
VECTORS = [(-1,), (1, -1), (1, -1, 1, 1), (-1, 1, 1)]


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors", ".legacy.pt"])
def test_file_formats(tmp_path: Path, suffix: str) -> None:
    loaded = loads_as(lct(), save(lct().state_dict(), tmp_path / f"ckpt{suffix}"))
    assert loaded.config.arch == "lct_resnet20"
    assert loaded.config.num_classes == 4
    assert all(parameter.dtype == torch.float32 for parameter in loaded.model.parameters())


@pytest.mark.parametrize("container", CONTAINERS)
def test_containers(tmp_path: Path, container: str) -> None:
    loaded = loads_as(lct(), save(CONTAINERS[container](lct().state_dict()), tmp_path / "ckpt.pt"))
    assert loaded.weights == ("ema" if container.startswith("ema") else "model")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes(tmp_path: Path, prefix: str) -> None:
    loads_as(lct(), save(renamed(lct().state_dict(), lambda key: prefix + key), tmp_path / "ckpt.pt"))


def test_a_backbone_with_its_head_beside_it(tmp_path: Path) -> None:
    state = renamed(lct().state_dict(), lambda key: key if key.startswith("fc.") else f"backbone.{key}")
    loads_as(lct(), save(state, tmp_path / "ckpt.pt"))


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("names", NAMES, ids="-".join)
def test_names_of_lct(tmp_path: Path, module: str, names: tuple[str, str]) -> None:
    loads_as(lct(), save(lct_spelling(lct().state_dict(), module, names, (-1,)), tmp_path / "ckpt.pt"))


@pytest.mark.parametrize("shape", VECTORS, ids=str)
def test_shapes_of_lct(tmp_path: Path, shape: tuple[int, ...]) -> None:
    state = lct_spelling(lct().state_dict(), "lct", ("weight", "bias"), shape)
    loads_as(lct(), save(state, tmp_path / "ckpt.safetensors"))


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(list(CONTAINERS)),
    st.sampled_from(PREFIXES),
    st.sampled_from(MODULES),
    st.sampled_from(NAMES),
    st.sampled_from(VECTORS),
    st.sampled_from([".pt", ".pth", ".safetensors", ".legacy.pt"]),
    st.randoms(use_true_random=False),
)
def test_any_mixture_of_dialects(
    container: str,
    prefix: str,
    module: str,
    names: tuple[str, str],
    shape: tuple[int, ...],
    suffix: str,
    rng: Any,
) -> None:
    state = renamed(lct_spelling(lct().state_dict(), module, names, shape), lambda key: prefix + key)
    items = [item for item in state.items() if not item[0].endswith("num_batches_tracked")]
    rng.shuffle(items)
    content = dict(items) if suffix == ".safetensors" else CONTAINERS[container](dict(items))
    with tempfile.TemporaryDirectory() as directory:
        loads_as(lct(), save(content, Path(directory) / f"ckpt{suffix}"))


def se_spelling(layers: tuple[str, str], *, module: str = "se", convolution: bool = False) -> State:
    spelled: State = {}
    for key, value in se().state_dict().items():
        prefix, _, name = key.partition(".attn.")
        if name:
            layer, _, kind = name.partition(".")
            key = f"{prefix}.{module}.{layers[int(layer[-1]) - 1]}.{kind}"
            value = value[:, :, None, None] if convolution and kind == "weight" else value
        spelled[key] = value
    return spelled


@pytest.mark.parametrize("layers", [("fc1", "fc2"), ("fc.0", "fc.2"), ("conv_reduce", "conv_expand")])
@pytest.mark.parametrize("convolution", [False, True])
@pytest.mark.parametrize("module", ["se", "ca"])
def test_names_of_se(tmp_path: Path, layers: tuple[str, str], convolution: bool, module: str) -> None:
    state = se_spelling(layers, module=module, convolution=convolution)
    loaded = loads_as(se(), save(state, tmp_path / "ckpt.pt"))
    assert loaded.config.arch == "se_resnet20"


def test_se_without_biases(tmp_path: Path) -> None:
    reference = build_model(model_config("se_resnet20", num_classes=4)).eval()
    biases = [key for key in reference.state_dict() if ".attn." in key and key.endswith("bias")]
    reference.load_state_dict(se().state_dict() | {k: reference.state_dict()[k] * 0 for k in biases})
    spelled = se_spelling(("fc.0", "fc.2"))
    state = {k: v for k, v in spelled.items() if not (".se." in k and k.endswith("bias"))}
    assert len(spelled) - len(state) == len(biases) == 18
    loaded = loads_as(reference, save(state, tmp_path / "ckpt.pt"))
    assert "the SE layers have no biases: loaded with zeros" in loaded.notes


def test_se_without_one_bias_is_damaged(tmp_path: Path) -> None:
    state = se_spelling(("fc1", "fc2"))
    del state["layer2.1.se.fc2.bias"]
    with pytest.raises(CheckpointError, match=r"missing +layer2\.1\.attn\.fc2\.bias"):
        load_checkpoint(save(state, tmp_path / "ckpt.pt"))


@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_the_reduction_of_se_is_read_off(tmp_path: Path, reduction: int) -> None:
    config = model_config("se_resnet20", num_classes=4)
    attention = config.attention.model_copy(update={"reduction": reduction})
    network = random_network(config.model_copy(update={"attention": attention}))
    loaded = loads_as(network, save(network.state_dict(), tmp_path / "ckpt.pt"))
    assert loaded.config.attention.reduction == reduction


def test_se_plus_looks_like_se_until_it_is_named(tmp_path: Path) -> None:
    plus = random_network(model_config("se_plus_resnet20", num_classes=4, groups=2))
    path = save(plus.state_dict(), tmp_path / "ckpt.pt")
    assert load_checkpoint(path).config.arch == "se_resnet20"
    loads_as(plus, path, LoadOptions(arch="se_plus_resnet20", groups=2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_other_float_types_are_converted_and_noted(tmp_path: Path, dtype: torch.dtype, suffix: str) -> None:
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in lct().state_dict().items()}
    reference = build_model(lct().config).eval()
    reference.load_state_dict({key: value.to(lct().state_dict()[key].dtype) for key, value in state.items()})
    loaded = loads_as(reference, save(state, tmp_path / f"ckpt{suffix}"))
    assert f"weights of type {dtype} are converted to torch.float32" in loaded.notes


@pytest.mark.parametrize(
    ("first", "second", "meaning"),
    [
        ("conv1.weight", "module.conv1.weight", "conv1.weight"),
        ("layer1.0.attn.w", "layer1.0.lct.weight", "layer1.0.attn.w"),
        ("backbone.fc.bias", "_orig_mod.fc.bias", "fc.bias"),
    ],
)
def test_two_names_for_one_parameter_are_refused(
    tmp_path: Path, first: str, second: str, meaning: str
) -> None:
    state = {k: v for k, v in lct().state_dict().items() if k != meaning}
    state[first] = state[second] = lct().state_dict()[meaning].clone()
    with pytest.raises(CheckpointError, match=f"{first} and {second} both mean {meaning}"):
        load_checkpoint(save(state, tmp_path / "ckpt.pt"))


@pytest.mark.parametrize("depth", FAMILIES)
def test_depth_and_classes_are_read_off(depth: int) -> None:
    for kind in ("none", "lct", "se"):
        with torch.device("meta"):
            network = build_model(model_config(arch_name(depth, kind), num_classes=13))
        inferred = infer(network.state_dict())
        assert (inferred.arch, infer_classes(network.state_dict())) == (arch_name(depth, kind), 13)
        assert inferred.reduction == 16
