"""What our own checkpoints say about themselves: kept exactly, and never trusted against the weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lct_deploy.architecture import ModelConfig, model_config
from lct_deploy.checkpoint import (
    CheckpointMetadata,
    LoadOptions,
    TrainingRecord,
    load_checkpoint,
    write_checkpoint,
)
from lct_deploy.errors import CheckpointError
from lct_deploy.models import ResNet
from lct_deploy.preprocessing import Preprocessing
from tests.conftest import random_network

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
LABELS = ("Zürich", "b", "c d", "猫")


@pytest.fixture(scope="module")
def lct() -> ResNet:
    return random_network(model_config("lct_resnet20", num_classes=4))


def refused(path: Path, **options: object) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, LoadOptions.model_validate(options))
    return str(caught.value)


def described(config: ModelConfig) -> CheckpointMetadata:
    record = TrainingRecord(
        data="fashion-mnist", command="lct-deploy train", epochs=3, test_top1=91.5, seconds=12.0
    )
    return CheckpointMetadata(
        model=config,
        labels=LABELS,
        preprocessing=Preprocessing(resize=30, crop=28, interpolation="bicubic", mean=(0.1, 0.2, 0.3)),
        training=record,
    )


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("arch", "choices"),
    [
        ("lct_resnet20", {}),
        ("lct_resnet20", {"groups": 2, "epsilon": 1e-3}),
        ("lct_resnet20", {"normalize": False}),
        ("lct_resnet20", {"transform": False}),
        ("lct_resnet20", {"stride_placement": "caffe"}),
        ("se_plus_resnet20", {"groups": 8}),
        ("resnet20", {}),
    ],
)
def test_metadata_survives_the_file(tmp_path: Path, suffix: str, arch: str, choices: dict[str, Any]) -> None:
    network = random_network(model_config(arch, num_classes=4, **choices))
    path, metadata = tmp_path / f"ckpt{suffix}", described(network.config)
    write_checkpoint(path, network.state_dict(), metadata)
    loaded = load_checkpoint(path)
    assert loaded.metadata == metadata
    assert loaded.config == network.config
    assert torch.equal(loaded.model(IMAGES), network(IMAGES))
    assert not any("assuming" in note for note in loaded.notes)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def with_metadata(state: dict[str, Tensor], path: Path, metadata: str) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path, metadata={"lct_deploy": metadata})
    else:
        torch.save({"state_dict": state, "lct_deploy": metadata}, path)
    return path


def changed(metadata: CheckpointMetadata, *keys: str, to: object) -> str:
    """The metadata's JSON with another value at `keys`."""
    document: dict[str, Any] = json.loads(metadata.model_dump_json())
    inner = document
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = to
    return json.dumps(document)


SCHEMA_2 = "written by a newer lct-deploy (checkpoint schema 2)"


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("keys", "value", "reason"),
    [
        (["schema_version"], 2, SCHEMA_2),
        (["schema_version"], 0, "schema_version: Input should be greater than or equal to 1"),
        (["labels"], ["a", "b", "c"], "names 3 labels for 4 classes"),
        (["labels"], None, "labels: Input should be a valid"),
        (["model"], {}, "model.arch: Field required"),
        (["model", "arch"], "lct_resnet21", "unknown architecture 'lct_resnet21'"),
        (["model", "arch"], "se_resnet20", "se_resnet20 has attention 'se', not 'lct'"),
        (
            ["model", "arch"],
            "lct_resnet18",
            "depth in the weights 20 contradicts the checkpoint's metadata, which says 18",
        ),
        (["model", "attention", "groups"], 3, "layer1.0.attn: 16 channels do not divide into 3 groups"),
        (["model", "attention", "epsilon"], -1, "model.attention.epsilon"),
        (["model", "attention", "colour"], 1, "model.attention.colour: Extra inputs are not permitted"),
        (["preprocessing", "crop"], 99, "crop 99 is larger than resize 30"),
    ],
)
def test_damaged_metadata(
    tmp_path: Path, lct: ResNet, suffix: str, keys: list[str], value: object, reason: str
) -> None:
    text = changed(described(lct.config), *keys, to=value)
    assert reason in refused(with_metadata(lct.state_dict(), tmp_path / f"ckpt{suffix}", text))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"model": 1}', "not JSON"])
def test_metadata_that_is_no_document(tmp_path: Path, lct: ResNet, text: str) -> None:
    for suffix in (".pt", ".safetensors"):
        message = refused(with_metadata(lct.state_dict(), tmp_path / f"ckpt{suffix}", text))
        assert "its lct_deploy metadata is damaged" in message
    torch.save({"state_dict": lct.state_dict(), "lct_deploy": {"model": text}}, tmp_path / "ckpt.pt")
    assert "its lct_deploy metadata is a dict, not JSON text" in refused(tmp_path / "ckpt.pt")


@pytest.mark.parametrize(
    ("arch", "classes", "reason"),
    [
        (
            "lct_resnet20",
            5,
            "number of classes in the weights 4 contradicts the checkpoint's metadata, which says 5",
        ),
        (
            "resnet20",
            4,
            "attention in the weights lct contradicts the checkpoint's metadata, which says none",
        ),
        ("se_plus_resnet20", 4, "attention in the weights lct contradicts"),
        ("lct_resnet18", 4, "depth in the weights 20 contradicts"),
    ],
)
def test_metadata_that_the_weights_contradict(
    tmp_path: Path, lct: ResNet, arch: str, classes: int, reason: str
) -> None:
    metadata = described(model_config(arch, num_classes=classes))
    metadata = metadata.model_copy(update={"labels": tuple(map(str, range(classes)))})
    path = with_metadata(lct.state_dict(), tmp_path / "ckpt.pt", metadata.model_dump_json())
    assert reason in refused(path)


@pytest.mark.parametrize(
    ("flag", "same", "other"),
    [
        ("arch", "lct_resnet20", "se_resnet20"),
        ("num_classes", 4, 5),
        ("groups", 2, 4),
        ("epsilon", 1e-3, 1e-5),
        ("stride_placement", "v1.5", "caffe"),
    ],
)
def test_flags_may_repeat_the_metadata_but_not_contradict_it(
    tmp_path: Path, lct: ResNet, flag: str, same: object, other: object
) -> None:
    config = model_config("lct_resnet20", num_classes=4, groups=2, epsilon=1e-3)
    write_checkpoint(tmp_path / "ckpt.pt", lct.state_dict(), described(config))
    assert load_checkpoint(tmp_path / "ckpt.pt", LoadOptions.model_validate({flag: same})).config == config
    message = refused(tmp_path / "ckpt.pt", **{flag: other})
    assert f"--{flag.replace('_', '-')} {other} contradicts" in message
    assert f"which says {same}" in message
