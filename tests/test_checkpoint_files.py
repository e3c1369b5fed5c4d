"""Files that are damaged, foreign or hostile: refused with a reason, and nothing in them is run."""

import os
import pickle
import random
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lct_deploy.architecture import model_config
from lct_deploy.checkpoint import (
    CheckpointMetadata,
    LoadedCheckpoint,
    LoadOptions,
    load_checkpoint,
    write_checkpoint,
)
from lct_deploy.errors import CheckpointError
from lct_deploy.models import ResNet
from lct_deploy.preprocessing import Preprocessing
from tests.conftest import Cli, random_network


@pytest.fixture(scope="module")
def network() -> ResNet:
    return random_network(model_config("lct_resnet20", num_classes=4))


def refused(path: Path, options: LoadOptions | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, options)
    return str(caught.value)


class Code:
    """Unpickling this calls `function(*arguments)`."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


CALLS: list[Callable[[Path], Code]] = [
    lambda marker: Code(os.mkdir, str(marker)),
    lambda marker: Code(subprocess.call, ["touch", str(marker)]),
    lambda marker: Code(exec, f"open({str(marker)!r}, 'w').close()"),
    lambda marker: Code(Path.touch, marker),
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("place", ["top", "state_dict", "beside"])
def test_a_pickle_with_code_is_refused_and_not_run(
    tmp_path: Path, network: ResNet, call: Callable[[Path], Code], legacy: bool, place: str
) -> None:
    marker, path = tmp_path / "created", tmp_path / "ckpt.pt"
    code, state = call(marker), network.state_dict()
    content: Any = {
        "top": code,
        "state_dict": {"state_dict": {**state, "conv1.weight": code}},
        "beside": {"state_dict": state, "args": code},
    }[place]
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    message = refused(path)
    assert not marker.exists()
    assert f"{path}: refused, because reading it would run pickled code" in message
    assert "torch.save(model.state_dict(), PATH)" in message
    assert "weights_only" not in message  # torch's advice to switch the safety off
    torch.load(path, weights_only=False)
    assert marker.exists()  # the file is as dangerous as it says


def test_a_bare_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "created"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path = tmp_path / f"{protocol}.pt"
        path.write_bytes(pickle.dumps(Code(os.mkdir, str(marker)), protocol=protocol))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            assert refused(path).startswith(f"{path}: ")
        assert not said  # torch warns of pickle protocols; the refusal is enough
    assert not marker.exists()


def test_a_pickled_module_is_refused(tmp_path: Path, network: ResNet) -> None:
    torch.save(network, tmp_path / "ckpt.pt")
    message = refused(tmp_path / "ckpt.pt")
    assert "would run pickled code" in message
    assert "lct_deploy.models.resnet.ResNet" in message


def test_a_torchscript_archive_is_refused(tmp_path: Path, network: ResNet) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.save(torch.jit.trace(network, torch.zeros(1, 3, 32, 32)), tmp_path / "ckpt.pt")
    assert "TorchScript program, not a state dict" in refused(tmp_path / "ckpt.pt")


NO_CHECKPOINTS = {
    "empty.pt": (b"", "the file is empty (0 bytes)"),
    "empty.safetensors": (b"", "the file is empty (0 bytes)"),
    "text.pt": (b"These are no weights.\n", "damaged, cut short, or not written by torch.save"),
    "page.pth": (b"<!DOCTYPE html><title>404</title>", "damaged, cut short, or not written by torch.save"),
    "pointer.pt": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "damaged, cut short"),
    "zeros.pt": (bytes(2048), "damaged, cut short, or not written by torch.save"),
    "zip.pt": (b"PK\x05\x06" + bytes(18), "damaged, cut short, or not written by torch.save"),
    "text.safetensors": (b"These are no weights.\n", "not a readable safetensors file"),
    "zeros.safetensors": (bytes(2048), "not a readable safetensors file"),
    "weights.bin": (b"\x80\x02", "not a checkpoint by its name"),
    "weights.onnx": (b"\x08\x01", "expected .pt, .pth, .safetensors"),
}


@pytest.mark.parametrize("name", NO_CHECKPOINTS)
def test_files_that_are_no_checkpoints(tmp_path: Path, name: str) -> None:
    data, reason = NO_CHECKPOINTS[name]
    (tmp_path / name).write_bytes(data)
    message = refused(tmp_path / name)
    assert message.startswith(f"{tmp_path / name}: ")
    assert reason in message


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_paths_that_are_no_files(tmp_path: Path, suffix: str) -> None:
    assert refused(tmp_path / f"absent{suffix}").endswith("no such file")
    (tmp_path / f"folder{suffix}").mkdir()
    assert "is a directory, not a checkpoint file" in refused(tmp_path / f"folder{suffix}")


def test_the_command_line_shows_no_traceback(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "ckpt.pt").write_bytes(b"no weights")
    done = cli("export", tmp_path / "ckpt.pt", "-o", tmp_path / "bundle")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path / 'ckpt.pt'}: damaged, cut short")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([torch.zeros(1)], "holds a list, not a state dict"),
        (torch.zeros(3), "holds a Tensor, not a state dict"),
        ({}, "no weights found"),
        ({"epoch": 3, "optimizer": {}}, r"no weights found; its top level holds ['epoch', 'optimizer']"),
        ({"weight": torch.zeros(3)}, "no classifier found"),
        ({"fc.weight": torch.zeros(0, 64)}, "no classifier found"),
        ({"fc.weight": torch.zeros(4, 64)}, "no known ResNet has basic blocks []"),
        ({"fc.weight": torch.zeros(4, 64), "layer1.999.conv1.weight": torch.zeros(1)}, "basic blocks [1000]"),
    ],
)
def test_contents_that_are_no_network(tmp_path: Path, content: object, reason: str) -> None:
    torch.save(content, tmp_path / "ckpt.pt")
    assert reason in refused(tmp_path / "ckpt.pt")


def test_a_checkpoint_that_contains_itself(tmp_path: Path) -> None:
    content: dict[str, Any] = {"epoch": 1}
    content["model"] = content["ema"] = content
    torch.save(content, tmp_path / "ckpt.pt")
    assert "no weights found" in refused(tmp_path / "ckpt.pt")


@pytest.mark.parametrize("kind", ["sparse", "without values"])
def test_tensors_that_hold_no_plain_values(tmp_path: Path, network: ResNet, kind: str) -> None:
    state = network.state_dict()
    w = state["layer1.0.attn.w"]
    state["layer1.0.attn.w"] = w.to_sparse() if kind == "sparse" else w.to("meta")
    torch.save(state, tmp_path / "ckpt.pt")
    assert "sparse or without values: layer1.0.attn.w (1 tensors)" in refused(tmp_path / "ckpt.pt")


def test_model_and_ema_are_never_confused(tmp_path: Path, network: ResNet) -> None:
    ema, path = random_network(network.config, seed=5), tmp_path / "ckpt.pt"
    torch.save({"model": network.state_dict(), "ema": {"state_dict": ema.state_dict()}}, path)
    assert "choose with --weights model or --weights ema" in refused(path)
    for choice, expected in (("model", network), ("ema", ema)):
        loaded = load_checkpoint(path, LoadOptions.model_validate({"weights": choice}))
        assert loaded.weights == choice
        for key, value in expected.state_dict().items():
            assert torch.equal(loaded.model.state_dict()[key], value)


def test_ema_weights_that_are_not_there(tmp_path: Path, network: ResNet) -> None:
    torch.save({"model": network.state_dict()}, tmp_path / "ckpt.pt")
    assert "holds no EMA weights" in refused(tmp_path / "ckpt.pt", LoadOptions(weights="ema"))
    save_file(network.state_dict(), tmp_path / "ckpt.safetensors")
    assert "one set of weights" in refused(tmp_path / "ckpt.safetensors", LoadOptions(weights="ema"))


def write(network: ResNet, path: Path) -> bytes:
    """The network with metadata; `.legacy.pt` is torch's format before zip."""
    preprocessing = Preprocessing(resize=28, crop=28)
    metadata = CheckpointMetadata(
        model=network.config, labels=("a", "b", "c", "d"), preprocessing=preprocessing
    )
    if path.name.endswith(".legacy.pt"):
        content = {"state_dict": network.state_dict(), "lct_deploy": metadata.model_dump_json()}
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        write_checkpoint(path, network.state_dict(), metadata)
    return path.read_bytes()


FORMATS = ["ckpt.pt", "ckpt.legacy.pt", "ckpt.safetensors"]


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_cut_short_anywhere(tmp_path: Path, network: ResNet, name: str) -> None:
    path = tmp_path / name
    data = write(network, path)
    assert load_checkpoint(path).metadata is not None
    ends = [1, 2, 3, 4, 7, 8, 9, 16, 64, 100, 1000, 5000, *range(20_000, len(data), 150_000)]
    for end in [*ends, *(len(data) - cut for cut in (20_000, 1000, 100, 23, 22, 2, 1))]:
        path.write_bytes(data[:end])
        assert str(path) in refused(path)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("seed", range(4))
def test_changed_bytes_load_or_are_refused(tmp_path: Path, network: ResNet, name: str, seed: int) -> None:
    """Mostly where the structure is, at both ends; an uncaught exception or warning fails the test."""
    path, rng = tmp_path / name, random.Random(seed)  # noqa: S311
    data = write(network, path)
    results = [attempt(path, mutated(data, rng)) for _ in range(30)]
    assert None in results
    assert all(result is None or result.config == network.config or not result.metadata for result in results)


def mutated(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        place = rng.choice(
            [rng.randrange(12_000), len(data) - 1 - rng.randrange(12_000), rng.randrange(len(data))]
        )
        operation = rng.randrange(4)
        if operation < 2:
            changed[place] = rng.randrange(256)
        elif operation == 2:
            del changed[place : place + rng.choice([1, 4, 64])]
        else:
            changed[place:place] = rng.randbytes(rng.choice([1, 4, 64]))
        changed.extend(bytes(max(0, len(data) - len(changed))))
    return bytes(changed)


def attempt(path: Path, data: bytes) -> LoadedCheckpoint | None:
    path.write_bytes(data)
    try:
        return load_checkpoint(path)
    except CheckpointError:
        return None
