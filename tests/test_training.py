"""Training on small synthetic data: it learns, repeats itself, survives a kill and stops when lost."""

import csv
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lct_deploy.checkpoint import load_checkpoint
from lct_deploy.datasets import ArrayImages, load_dataset
from lct_deploy.errors import ArchitectureError, DataError, LctDeployError, UsageError
from lct_deploy.models.classifier import ImageClassifier
from lct_deploy.preprocessing import Preprocessing, evaluation_preprocessing
from lct_deploy.train.batches import Batches
from lct_deploy.train.config import TrainConfig, learning_rate
from lct_deploy.train.run import TrainRequest, train
from tests.conftest import Cli
from tests.idx import write_idx_dataset

CONFIG = TrainConfig(epochs=3, batch_size=30, lr=0.05, schedule="cosine")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    write_idx_dataset(path, classes=3, train=120, test=60, size=16)
    return path


@pytest.fixture(scope="module")
def request_(data: Path) -> TrainRequest:
    return TrainRequest(data=str(data), arch="lct_resnet20")


@pytest.fixture(scope="module")
def finished(request_: TrainRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a finished run, beside its log and its state."""
    output = tmp_path_factory.mktemp("run") / "model.safetensors"
    train(request_, CONFIG, output)
    return output


def same_weights(first: Path, second: Path) -> bool:
    a, b = (load_checkpoint(path).model.state_dict() for path in (first, second))
    return all(torch.equal(a[key], b[key]) for key in a.keys() | b.keys())


def test_the_loss_falls_and_the_classes_are_learnt(finished: Path) -> None:
    with finished.with_suffix(".csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["epoch", "loss", "test_top1", "lr", "seconds"]
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    losses = [float(row["loss"]) for row in rows]
    assert losses[0] > losses[1] > losses[2]
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.05, 0.0375, 0.0125])
    assert float(rows[2]["seconds"]) > float(rows[1]["seconds"]) > float(rows[0]["seconds"]) > 0
    assert {path.suffix for path in finished.parent.iterdir()} == {".safetensors", ".csv", ".pt"}


def test_the_checkpoint_says_all_that_export_needs(finished: Path, data: Path) -> None:
    loaded = load_checkpoint(finished)
    images = load_dataset(str(data), "train")
    assert isinstance(images, ArrayImages)
    assert loaded.metadata is not None
    assert loaded.metadata.labels == ("0", "1", "2")
    assert (loaded.config.arch, loaded.config.num_classes) == ("lct_resnet20", 3)
    preprocessing = loaded.metadata.preprocessing
    assert (preprocessing.resize, preprocessing.crop) == (16, 16)
    assert preprocessing.mean == pytest.approx([images.images.mean() / 255] * 3, abs=1e-4)
    assert preprocessing.std == pytest.approx([images.images.std() / 255] * 3, abs=1e-4)
    record = loaded.metadata.training
    assert record is not None
    assert (record.data, record.epochs) == (str(data), 3)


def test_the_recorded_accuracy_is_that_of_the_file(finished: Path, data: Path) -> None:
    loaded = load_checkpoint(finished)
    test = load_dataset(str(data), "test")
    assert isinstance(test, ArrayImages)
    assert loaded.metadata is not None
    assert loaded.metadata.training is not None
    classifier = ImageClassifier(loaded.model, loaded.metadata.preprocessing).eval()
    rgb = torch.tensor(test.images)[..., None].expand(-1, -1, -1, 3)
    correct = (classifier(rgb).argmax(dim=1).numpy() == test.labels).mean()
    assert loaded.metadata.training.test_top1 == pytest.approx(100 * correct)
    assert correct > 0.6  # a guess is right in a third


def test_a_seed_fixes_the_weights(request_: TrainRequest, finished: Path, tmp_path: Path) -> None:
    train(request_, CONFIG, tmp_path / "again.pt")
    assert same_weights(tmp_path / "again.pt", finished)
    train(request_, CONFIG.model_copy(update={"seed": 1, "epochs": 1}), tmp_path / "other.pt")
    assert not same_weights(tmp_path / "other.pt", finished)


def command(data: Path, output: Path, *more: str) -> list[str]:
    options = ["--epochs", "3", "--batch-size", "30", "--lr", "0.05", "--schedule", "cosine"]
    return ["train", "--data", str(data), "-o", str(output), *options, *more]


def test_a_killed_run_resumes_to_the_same_bits(cli: Cli, data: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    assert cli(*command(data, whole)).returncode == 0
    arguments = [sys.executable, "-m", "lct_deploy", *command(data, killed)]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any(line.startswith("epoch 1:") for line in process.stderr)
        process.kill()
    assert not killed.exists()
    state = torch.load(tmp_path / "killed.state.pt", weights_only=True)
    assert len(state["history"]) < 3
    done = cli(*command(data, killed, "--resume"))
    assert done.returncode == 0, done.stderr
    assert "epoch 1:" not in done.stderr
    assert "epoch 3:" in done.stderr
    assert done.stdout.startswith(f"{killed}: top-1 ")
    assert same_weights(whole, killed)


def test_a_finished_run_resumes_to_itself(request_: TrainRequest, finished: Path, tmp_path: Path) -> None:
    before = tmp_path / "before.safetensors"
    before.write_bytes(finished.read_bytes())
    assert train(request_, CONFIG, finished, resume=True).epoch == 3
    assert same_weights(finished, before)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"lr": 0.1}, "lr was 0.05, now 0.1"),
        ({"epochs": 4, "seed": 7}, "epochs was 3, now 4; seed was 0, now 7"),
        ({"arch": "se_resnet20"}, "arch was lct_resnet20, now se_resnet20"),
        ({"groups": 2}, "attention was"),
    ],
)
def test_a_run_is_not_resumed_with_other_settings(
    request_: TrainRequest, finished: Path, changes: dict[str, Any], reason: str
) -> None:
    of_config = {key: value for key, value in changes.items() if key in TrainConfig.model_fields}
    of_request = {key: value for key, value in changes.items() if key not in of_config}
    before = finished.read_bytes()
    with pytest.raises(DataError, match="a run with other settings") as caught:
        train(replace(request_, **of_request), CONFIG.model_copy(update=of_config), finished, resume=True)
    assert reason in str(caught.value)
    assert finished.read_bytes() == before


def test_a_run_is_not_resumed_on_other_data(request_: TrainRequest, finished: Path, tmp_path: Path) -> None:
    write_idx_dataset(tmp_path / "other", classes=3, train=60, test=30, size=16)
    with pytest.raises(DataError, match=r"data was .*, now .*other"):
        train(replace(request_, data=str(tmp_path / "other")), CONFIG, finished, resume=True)


def test_states_that_cannot_be_resumed_from(request_: TrainRequest, finished: Path, tmp_path: Path) -> None:
    output, state = tmp_path / "model.pt", tmp_path / "model.state.pt"
    whole = finished.with_name("model.state.pt").read_bytes()
    with pytest.raises(DataError, match="no training state to resume from"):
        train(request_, CONFIG, output, resume=True)
    for damaged in (b"", b"text", whole[: len(whole) // 2]):
        state.write_bytes(damaged)
        with pytest.raises(DataError, match="damaged training state"):
            train(request_, CONFIG, output, resume=True)
    torch.save({"state_dict": {}}, state)
    with pytest.raises(DataError, match="not a training state"):
        train(request_, CONFIG, output, resume=True)
    assert not output.exists()


def test_mixed_precision_computes_in_bfloat16_and_keeps_float32_weights(
    request_: TrainRequest, finished: Path, tmp_path: Path
) -> None:
    output = tmp_path / "model.safetensors"
    result = train(request_, CONFIG.model_copy(update={"precision": "bf16"}), output)
    in_fp32 = torch.load(finished.with_name("model.state.pt"), weights_only=True)["history"][-1]["loss"]
    assert result.loss != in_fp32
    assert result.loss == pytest.approx(in_fp32, rel=0.3)
    assert result.test_top1 > 90
    assert not same_weights(output, finished)
    state = load_checkpoint(output).model.state_dict()
    assert {value.dtype for value in state.values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize(
    ("rate", "decay", "reason"),
    [
        (1e30, 0.0, r"the loss is (nan|inf) in epoch \d, step \d"),
        (1e38, 1e4, "is not finite at the end of epoch 2"),
    ],
)
def test_a_run_that_diverges_stops_and_keeps_its_last_good_epoch(
    request_: TrainRequest, tmp_path: Path, rate: float, decay: float, reason: str
) -> None:
    """With a step an epoch and warm-up from 0, the first epoch changes no weight and is good."""
    config = TrainConfig(epochs=5, batch_size=120, lr=rate, weight_decay=decay, warmup_epochs=1)
    with pytest.raises(LctDeployError, match=reason) as caught:
        train(request_, config, tmp_path / "model.pt")
    assert caught.value.exit_code == 1
    assert "lower --lr" in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"model.state.pt"}
    state = torch.load(tmp_path / "model.state.pt", weights_only=True)
    assert state["history"][0]["epoch"] == 1
    assert all(bool(torch.isfinite(value).all()) for value in state["model"].values())


def test_epochs_are_shuffled_anew_and_repeatably(data: Path) -> None:
    images = load_dataset(str(data), "train")
    assert isinstance(images, ArrayImages)
    size = Preprocessing(resize=16, crop=16)
    shuffled = Batches(images, size, batch_size=50, augment=True, seed=3)
    in_order = Batches(images, size, batch_size=50, augment=False)
    first, again, second = ([labels for _, labels in shuffled.epoch(n)] for n in (0, 0, 1))
    assert (len(shuffled), [len(labels) for labels in first]) == (3, [50, 50, 20])
    assert torch.equal(torch.cat(first), torch.cat(again))
    assert not torch.equal(torch.cat(first), torch.cat(second))
    assert torch.equal(torch.cat(first).sort().values, torch.tensor(images.labels).sort().values)
    whole = torch.cat([pixels for pixels, _ in in_order.epoch(5)])
    assert torch.equal(whole, torch.tensor(images.images)[..., None].expand(-1, -1, -1, 3))


def test_learning_rate_in_steps() -> None:
    config = TrainConfig(epochs=100, lr=0.1)
    rates = [learning_rate(config, progress) for progress in (0, 29.99, 30, 59.99, 60, 90, 99)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 1e-3, 1e-4, 1e-4])
    assert learning_rate(TrainConfig(lr=0.1, step_epochs=2), 5) == pytest.approx(1e-3)


def test_learning_rate_of_a_cosine() -> None:
    config = TrainConfig(epochs=20, lr=0.2, schedule="cosine")
    rates = [learning_rate(config, progress) for progress in (0, 5, 10, 15, 20)]
    assert rates == pytest.approx([0.2, 0.1 + 0.1 * math.sqrt(0.5), 0.1, 0.1 - 0.1 * math.sqrt(0.5), 0])


def test_learning_rate_of_a_warm_up() -> None:
    config = TrainConfig(epochs=12, lr=0.3, schedule="cosine", warmup_epochs=2)
    rates = [learning_rate(config, progress) for progress in (0, 0.5, 1, 2, 7, 12)]
    assert rates == pytest.approx([0, 0.075, 0.15, 0.3, 0.15, 0])


def test_image_folders(cli: Cli, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, name, level in (
        ("train", "dark", 50),
        ("train", "light", 200),
        ("val", "dark", 50),
        ("val", "light", 200),
    ):
        folder = tmp_path / "data" / split / name
        folder.mkdir(parents=True)
        for index in range(6):
            pixels = rng.normal(level, 20, (40 + index, 50, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
    output = tmp_path / "model.pt"
    source = ["--data", tmp_path / "data", "--arch", "lct_resnet20", "--image-size", 24]
    done = cli("train", "-o", output, *source, "--epochs", 2, "--batch-size", 6, "--lr", 0.02)
    assert done.returncode == 0, done.stderr
    loaded = load_checkpoint(output)
    assert loaded.metadata is not None
    assert loaded.metadata.labels == ("dark", "light")
    assert loaded.metadata.preprocessing == evaluation_preprocessing(24)
    assert loaded.metadata.training is not None
    assert loaded.metadata.training.command.startswith(f"lct-deploy train -o {output} --data ")


REFUSED: list[tuple[str, dict[str, Any], type[LctDeployError], str]] = [
    ("model.onnx", {}, UsageError, "not a checkpoint name"),
    ("absent/model.pt", {}, UsageError, "its directory does not exist"),
    ("folder.pt", {}, UsageError, "is a directory"),
    ("model.pt", {"data": "/nowhere"}, DataError, "no such directory"),
    ("model.pt", {"arch": "lct-resnet20"}, ArchitectureError, "did you mean lct_resnet20"),
    ("model.pt", {"groups": 5}, ArchitectureError, "legal group counts are 1, 2, 4, 8"),
    ("model.pt", {"groups": 0}, UsageError, "groups: Input should be greater"),
    ("model.pt", {"image_size": -1}, UsageError, "not a size in pixels"),
]


@pytest.mark.parametrize(("name", "changes", "error", "reason"), REFUSED)
def test_mistakes_are_found_before_training(
    request_: TrainRequest,
    tmp_path: Path,
    name: str,
    changes: dict[str, Any],
    error: type[LctDeployError],
    reason: str,
) -> None:
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(error, match=reason):
        train(replace(request_, **changes), CONFIG, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.pt"]


@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [
        (["--schedule", "linear"], 2, "schedule: Input should be 'step' or 'cosine'"),
        (["--groups", "3"], 2, "legal group counts"),
        (["--lr", "1e38"], 1, "lower --lr"),
    ],
)
def test_exit_codes(cli: Cli, data: Path, tmp_path: Path, options: list[str], code: int, reason: str) -> None:
    done = cli(*command(data, tmp_path / "model.pt", *options))
    assert done.returncode == code
    assert "error: " in done.stderr
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
