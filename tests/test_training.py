"""Training on small synthetic data: it learns, repeats itself, survives a kill and stops when lost."""

import math
import re
import subprocess
import sys
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
from lct_deploy.train.config import Execution, TrainConfig, learning_rate
from lct_deploy.train.recipes import RECIPES
from tests.conftest import Cli
from tests.idx import write_idx_dataset
from tests.training import log, run, same_weights


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    write_idx_dataset(path, classes=3, train=120, test=60, size=16)
    return path


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a finished run, beside its log and its state."""
    output = tmp_path_factory.mktemp("run") / "model.safetensors"
    run(data, output)
    return output


def test_the_loss_falls_and_the_classes_are_learnt(finished: Path) -> None:
    rows = log(finished)
    assert list(rows[0]) == [
        *("epoch", "loss", "test_top1", "test_top5", "lr"),
        *("images_per_second", "data_wait", "seconds"),
    ]
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


def test_a_seed_fixes_the_weights(data: Path, finished: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "again.pt")
    assert same_weights(tmp_path / "again.pt", finished)
    run(data, tmp_path / "other.pt", seed=1, epochs=1)
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


def test_a_finished_run_resumes_to_itself(data: Path, finished: Path, tmp_path: Path) -> None:
    before = tmp_path / "before.safetensors"
    before.write_bytes(finished.read_bytes())
    assert run(data, finished, resume=True).epoch == 3
    assert same_weights(finished, before)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"lr": 0.1}, "lr was 0.05, now 0.1"),
        ({"epochs": 4, "seed": 7}, "epochs was 3, now 4; seed was 0, now 7"),
        ({"arch": "se_resnet20"}, "arch was lct_resnet20, now se_resnet20"),
        ({"groups": 2}, "groups was None, now 2; attention was"),
        ({"execution": Execution(accumulate=2)}, "parts of a batch was 1, now 2"),
        ({"recipe": RECIPES["demo-resnet20"]}, "recipe was None, now demo-resnet20 v1"),
    ],
)
def test_a_run_is_not_resumed_with_other_settings(
    data: Path, finished: Path, changes: dict[str, Any], reason: str
) -> None:
    before = finished.read_bytes()
    with pytest.raises(DataError, match="a run with other settings") as caught:
        run(data, finished, resume=True, **changes)
    assert reason in str(caught.value)
    assert finished.read_bytes() == before


def test_a_run_is_not_resumed_on_other_data(finished: Path, tmp_path: Path) -> None:
    write_idx_dataset(tmp_path / "other", classes=3, train=60, test=30, size=16)
    with pytest.raises(DataError, match=r"data was .*, now .*other"):
        run(tmp_path / "other", finished, resume=True)


def test_states_that_cannot_be_resumed_from(data: Path, finished: Path, tmp_path: Path) -> None:
    output, state = tmp_path / "model.pt", tmp_path / "model.state.pt"
    whole = finished.with_name("model.state.pt").read_bytes()
    with pytest.raises(DataError, match="no training state to resume from"):
        run(data, output, resume=True)
    for damaged in (b"", b"text", whole[: len(whole) // 2]):
        state.write_bytes(damaged)
        with pytest.raises(DataError, match="damaged training state"):
            run(data, output, resume=True)
    torch.save({"state_dict": {}}, state)
    with pytest.raises(DataError, match="not a training state"):
        run(data, output, resume=True)
    assert not output.exists()


def test_mixed_precision_computes_in_bfloat16_and_keeps_float32_weights(
    data: Path, finished: Path, tmp_path: Path
) -> None:
    output = tmp_path / "model.safetensors"
    result = run(data, output, precision="bf16")
    in_fp32 = float(log(finished)[-1]["loss"])
    assert result.loss != in_fp32
    assert result.loss == pytest.approx(in_fp32, rel=0.3)
    assert result.test_top1 > 90
    assert not same_weights(output, finished)
    state = load_checkpoint(output).model.state_dict()
    assert {value.dtype for value in state.values()} == {torch.float32, torch.int64}


def test_in_float16_the_loss_is_scaled_and_the_scale_is_kept(tmp_path: Path) -> None:
    write_idx_dataset(tmp_path, classes=2, train=8, test=4, size=8)  # processors compute slowly in float16
    states: list[dict[str, Any]] = []
    for precision in ("fp32", "fp16"):
        run(tmp_path, tmp_path / "model.pt", precision=precision, epochs=1, batch_size=4)
        states.append(torch.load(tmp_path / "model.state.pt", weights_only=True))
    assert states[0]["scaler"] == {}
    assert states[1]["scaler"]["scale"] >= 2**14
    assert states[0]["loss"] == states[1]["loss"] == 0  # between two epochs
    losses = [state["history"][0]["loss"] for state in states]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert {value.dtype for value in states[1]["model"].values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize(
    ("rate", "decay", "reason"),
    [
        (1e30, 0.0, r"the loss is (nan|inf) in epoch \d, step \d"),
        (1e38, 1e4, "is not finite in epoch 2, step 1"),
    ],
)
def test_a_run_that_diverges_stops_and_keeps_its_last_good_epoch(
    data: Path, tmp_path: Path, rate: float, decay: float, reason: str
) -> None:
    """With a step an epoch and warm-up from 0, the first epoch changes no weight and is good."""
    schedule: dict[str, Any] = {"epochs": 5, "batch_size": 120, "warmup_epochs": 1, "schedule": "step"}
    with pytest.raises(LctDeployError, match=reason) as caught:
        run(data, tmp_path / "model.pt", lr=rate, weight_decay=decay, **schedule)
    assert caught.value.exit_code == 1
    assert re.search(r"model.state.pt holds the last good state, of epoch \d, step \d", str(caught.value))
    assert "lower --lr" in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"model.state.pt", "model.csv"}
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
    ("model.pt", {"data": Path("/nowhere")}, DataError, "no such directory"),
    ("model.pt", {"arch": "lct-resnet20"}, ArchitectureError, "did you mean lct_resnet20"),
    ("model.pt", {"groups": 5}, ArchitectureError, "legal group counts are 1, 2, 4, 8"),
    (
        "model.pt",
        {"arch": "se_resnet20", "transform": False},
        ArchitectureError,
        "--no-transform would change",
    ),
    ("model.pt", {"transform": False, "b_init": 0.0}, ArchitectureError, "--b-init would change nothing"),
    ("model.pt", {"execution": Execution(accumulate=31)}, UsageError, "30 cannot be cut into 31 parts"),
    ("model.pt", {"batch_size": 1, "arch": "resnet26"}, UsageError, "into 1 part: resnet26 needs 2 images"),
    ("model.pt", {"batch_size": 300, "execution": Execution(accumulate=61)}, DataError, "120 images are too"),
]


@pytest.mark.parametrize(("name", "changes", "error", "reason"), REFUSED)
def test_mistakes_are_found_before_training(
    data: Path,
    tmp_path: Path,
    name: str,
    changes: dict[str, Any],
    error: type[LctDeployError],
    reason: str,
) -> None:
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(error, match=reason):
        run(changes.pop("data", data), tmp_path / name, **changes)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.pt"]


@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [
        (["--schedule", "linear"], 2, "schedule: Input should be 'step' or 'cosine'"),
        (["--groups", "3"], 2, "legal group counts"),
        (
            ["--groups", "0", "--image-size", "-1"],
            2,
            "groups: Input should be greater than or equal to 1\nimage_size",
        ),
        (["--recipe", "paper-resnet5"], 2, "did you mean paper-resnet50?"),
        (["--compile", "--accumulate", "2"], 2, "--compile does not go with --accumulate"),
        (["--device", "tpu"], 2, "device: Input should be 'auto', 'cpu' or 'cuda'"),
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
