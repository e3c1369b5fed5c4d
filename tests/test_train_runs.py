"""What `train` offers beside the plain run: recipes, ablations, averages, parts of batches, logs, stops."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from lct_deploy.architecture import model_config
from lct_deploy.checkpoint import load_checkpoint
from lct_deploy.errors import DataError, ExportError
from lct_deploy.models import LinearContextTransform, build_model
from lct_deploy.models.classifier import ImageClassifier
from lct_deploy.sample import DEMO_CHECKPOINT
from lct_deploy.train.batches import Batches, Share
from lct_deploy.train.config import Execution, TrainConfig
from lct_deploy.train.interrupt import StopRequest
from lct_deploy.train.learner import Learner
from lct_deploy.train.meter import describe_seconds
from lct_deploy.train.prepare import load_splits, network_config, settle_preprocessing
from lct_deploy.train.recipes import RECIPES, choose
from lct_deploy.train.statistics import set_momentum
from tests.conftest import QuickCli, export
from tests.idx import write_idx, write_idx_dataset
from tests.training import OPTIONS, log, run, same_weights


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    write_idx_dataset(path, classes=3, train=120, test=60, size=16)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageFolder tree of two classes, 12 images to train on and 4 to test on."""
    root = tmp_path_factory.mktemp("folders")
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for name, level in (("dark", 50), ("light", 200)):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.normal(level, 20, (30, 40, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")
    return root


# ---- recipes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "batch"), [(50, 256), (101, 220)])
def test_the_papers_recipe_is_the_papers(depth: int, batch: int) -> None:
    config = RECIPES[f"paper-resnet{depth}"].config
    assert (config.lr, config.momentum, config.weight_decay) == (0.1, 0.9, 1e-4)
    assert (config.schedule, config.step_epochs, config.epochs, config.warmup_epochs) == ("step", 30, 100, 0)
    assert (config.batch_size, config.image_size, config.groups) == (batch, 224, 64)
    assert (config.w_init, config.b_init) == (0, 1)
    model = network_config(config, 1000)
    assert (model.arch, model.attention.groups) == (f"lct_resnet{depth}", 64)
    assert model == model_config(f"lct_resnet{depth}")


def test_the_demo_recipe_is_the_command_of_the_shipped_checkpoint() -> None:
    loaded = load_checkpoint(DEMO_CHECKPOINT)
    assert loaded.metadata is not None
    assert loaded.metadata.training is not None
    command = loaded.metadata.training.command
    config = RECIPES["demo-resnet20"].config
    words = dict(zip(command.split()[2::2], command.split()[3::2], strict=True))
    for option, value in words.items():
        if option not in ("--data", "-o"):
            assert str(getattr(config, option.removeprefix("--").replace("-", "_"))) == str(
                type(getattr(config, option.removeprefix("--").replace("-", "_")))(value)
            )
    assert network_config(config, 10) == loaded.config


def test_recipes_name_every_setting() -> None:
    """A default that changes must not change what a version of a recipe stands for."""
    for recipe in RECIPES.values():
        assert recipe.config.model_fields_set == set(TrainConfig.model_fields)


def test_what_overrides_a_recipe_is_known() -> None:
    chosen = choose("paper-resnet50", arch="resnet50", epochs=100, batch_size=64)
    assert chosen.overrides == {"arch": "resnet50", "batch_size": 64}
    assert chosen.use is not None
    assert chosen.use.model_dump() == {"name": "paper-resnet50", "version": 1, "overrides": chosen.overrides}
    assert choose("paper-resnet50").overrides == {}
    assert choose(None, epochs=3).use is None


def test_a_recipe_its_overrides_and_all_settings_stay_in_the_checkpoint(
    quick_cli: QuickCli, data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "model.safetensors"
    options = ["--epochs", 1, "--batch-size", 60, "--image-size", 16]
    done = quick_cli("train", "--recipe", "demo-resnet20", "--data", data, "-o", output, *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{output}: top-1 ")
    assert "recipe demo-resnet20 v1: Fashion-MNIST" in done.stderr
    for note in ("epochs is 1, not the recipe's 20", "batch_size is 60, not the recipe's 128"):
        assert f"note: {note}" in done.stderr
    metadata = load_checkpoint(output).metadata
    assert metadata is not None
    assert metadata.training is not None
    assert metadata.training.recipe is not None
    assert metadata.training.recipe.overrides == {"epochs": 1, "batch_size": 60, "image_size": 16}
    assert metadata.training.settings is not None
    assert (metadata.training.settings["weight_decay"], metadata.training.settings["epochs"]) == (5e-4, 1)
    assert metadata.training.test_top5 == 100
    assert f"--recipe demo-resnet20 --data {data}" in metadata.training.command


def test_recipes_are_listed_without_any_other_option(quick_cli: QuickCli) -> None:
    done = quick_cli("train", "--recipe", "help")
    assert done.returncode == 0
    for recipe in RECIPES.values():
        assert recipe.name in done.stdout
    assert "256 images a step" in done.stdout


# ---- ablations -------------------------------------------------------------------------------------


def test_an_lct_without_its_normalisation_is_trained_and_exported_unfused(
    quick_cli: QuickCli, data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "model.safetensors"
    options = ["--epochs", 1, "--batch-size", 60, "--no-normalize", "--w-init", 0.5, "--b-init", 0]
    done = quick_cli("train", "--data", data, "-o", output, *options)
    assert done.returncode == 0, done.stderr
    assert "warning: an LCT without normalisation has no node of its own" in done.stderr
    assert "--allow-unfused" in done.stderr
    loaded = load_checkpoint(output)
    assert not loaded.config.attention.normalize
    blocks = [b for b in loaded.model.attention_blocks().values() if isinstance(b, LinearContextTransform)]
    assert len(blocks) == 9
    assert all(0.3 < float(b.w.mean()) < 0.7 and abs(float(b.b.mean())) < 0.2 for b in blocks)
    with pytest.raises(ExportError, match="--allow-unfused"):
        export(output, tmp_path / "bundle")


def test_an_lct_without_its_transform_exports_as_it_is(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "model.safetensors"
    run(data, output, epochs=1, batch_size=60, transform=False)
    manifest = export(output, tmp_path / "bundle")
    assert len(manifest.certificate.fused) == 9
    assert manifest.parity[0].passed
    assert manifest.attention is not None
    assert not manifest.attention.transform


# ---- an average of the weights ---------------------------------------------------------------------


def test_the_average_of_the_weights_is_what_is_tested_and_written(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "model.safetensors"
    result = run(data, output, ema_decay=0.5)
    state = torch.load(tmp_path / "model.state.pt", weights_only=True)
    written = load_checkpoint(output).model.state_dict()
    for name, value in written.items():
        assert torch.equal(value, state["average"][f"module.network.{name}"])
    assert not torch.equal(written["fc.weight"], state["model"]["network.fc.weight"])
    assert int(state["average"]["n_averaged"]) == 12
    assert result.test_top1 > 60


def test_the_average_follows_its_rule(data: Path, tmp_path: Path) -> None:
    """After two steps: decay · first + (1 − decay) · second, of weights and statistics."""
    states: list[dict[str, Any]] = []
    for epochs in (1, 2):
        run(data, tmp_path / f"{epochs}.pt", ema_decay=0.75, schedule="step", epochs=epochs, batch_size=120)
        states.append(torch.load(tmp_path / f"{epochs}.state.pt", weights_only=True))
    first, second = (state["model"] for state in states)
    for name, value in first.items():
        if value.is_floating_point():
            expected = 0.75 * value + 0.25 * second[name]
            torch.testing.assert_close(states[1]["average"][f"module.{name}"], expected)


# ---- parts of a batch ------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_all_parts_of_a_batch_count_alike_in_running_statistics(parts: int) -> None:
    norm = nn.BatchNorm2d(4)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.fill_(5.0)
    images = [torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(i)) for i in range(parts)]
    for part, image in enumerate(images):
        set_momentum(norm, part, parts)
        norm(image)
    means = torch.stack([image.mean(dim=(0, 2, 3)) for image in images]).mean(dim=0)
    variances = torch.stack([image.transpose(0, 1).flatten(1).var(dim=1) for image in images]).mean(dim=0)
    torch.testing.assert_close(norm.running_mean, 0.9 * 5.0 + 0.1 * means)
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * variances)


def test_a_batch_in_parts_has_the_gradient_of_its_mean_loss(data: Path, tmp_path: Path) -> None:
    """By plain PyTorch, with each part normalised by itself, for one step of SGD without momentum."""
    changes: dict[str, Any] = {
        "epochs": 1, "batch_size": 120, "momentum": 0.0, "weight_decay": 0.0, "schedule": "step",
    }  # fmt: skip
    run(data, tmp_path / "model.pt", execution=Execution(accumulate=3, channels_last=False), **changes)
    splits, config = load_splits(str(data)), model_config("lct_resnet20", num_classes=3)
    preprocessing = settle_preprocessing(TrainConfig(), splits.train, config)
    torch.manual_seed(0)
    classifier = ImageClassifier(build_model(config), preprocessing).train()
    parts = Batches(
        splits.train, preprocessing, batch_size=120, augment=True, share=Share(parts=3, own=range(3))
    )
    losses = [nn.functional.cross_entropy(classifier(x), y) for x, y in parts.epoch(0)]
    torch.stack(losses).mean().backward()
    trained = load_checkpoint(tmp_path / "model.pt").model.state_dict()
    for name, parameter in classifier.network.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(
            trained[name], (parameter - 0.05 * parameter.grad).detach(), rtol=1e-4, atol=1e-6
        )


# ---- logs ------------------------------------------------------------------------------------------


def test_epochs_go_to_the_log_and_to_tensorboard(data: Path, tmp_path: Path) -> None:
    output, events = tmp_path / "model.pt", tmp_path / "events"
    run(data, output, epochs=2, batch_size=60, execution=Execution(tensorboard=events))
    rows = log(output)
    accumulator = EventAccumulator(str(events))
    accumulator.Reload()
    assert set(cast("list[str]", accumulator.Tags()["scalars"])) == set(rows[0]) - {"epoch"}
    for name in ("loss", "test_top1", "lr", "data_wait"):
        scalars = accumulator.Scalars(name)
        assert [event.step for event in scalars] == [1, 2]
        assert [event.value for event in scalars] == pytest.approx([float(row[name]) for row in rows])
    assert all(0 <= float(row["data_wait"]) < 100 < float(row["images_per_second"]) * 100 for row in rows)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (99, "99 s"), (720, "12 min"), (11_100, "3 h 05 min")]
)
def test_times_in_words(seconds: float, text: str) -> None:
    assert describe_seconds(seconds) == text


# ---- data that cannot be used ----------------------------------------------------------------------


def test_images_that_cannot_be_read_stop_the_run_unless_allowed(
    quick_cli: QuickCli, folders: Path, tmp_path: Path
) -> None:
    data, output = tmp_path / "data", tmp_path / "model.safetensors"
    shutil.copytree(folders, data)
    broken = [data / "train" / "dark" / "3.png", data / "val" / "light" / "1.png"]
    for path in broken:
        path.write_bytes(path.read_bytes()[:50])
    command = ["train", "--data", data, "-o", output, "--image-size", 24, "--workers", 0]
    command += ["--epochs", 2, "--batch-size", 6, "--lr", 0.02]
    done = quick_cli(*command)
    assert done.returncode == 2
    assert f"warning: left out: {broken[0]}: damaged image" in done.stderr
    assert "error: 1 images cannot be used, and 0 may be left out" in done.stderr
    assert not output.exists()
    done = quick_cli(*command, "--max-unreadable", 2)
    assert done.returncode == 0, done.stderr
    for path in broken:
        assert done.stderr.count(f"warning: left out: {path}: damaged image") == 1
    metadata = load_checkpoint(output).metadata
    assert metadata is not None
    assert metadata.training is not None
    assert metadata.training.left_out == 2


def test_a_class_without_training_images_is_named(tmp_path: Path) -> None:
    write_idx_dataset(tmp_path, classes=4, train=20, test=20, size=16)
    labels = np.arange(20, dtype=np.uint8) % 4
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.where(labels == 2, 1, labels).astype(np.uint8))
    with pytest.raises(DataError, match="classes without an image to train on: 2"):
        run(tmp_path, tmp_path / "model.pt")


def test_classes_of_one_split_only_are_named(folders: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(folders, data)
    (data / "train" / "dark").rename(data / "train" / "dusk")
    with pytest.raises(DataError, match="only one of the two splits: dark, dusk"):
        run(data, tmp_path / "model.pt", image_size=24)


# ---- stopped and resumed ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped, saved at every second of its twelve steps."""
    output = tmp_path_factory.mktemp("whole") / "model.safetensors"
    run(data, output, execution=Execution(save_every=2), precision="bf16", ema_decay=0.9)
    return output


def test_a_run_stopped_within_an_epoch_resumes_to_the_same_bits(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the power had gone after the sixth step: what is there is the state of that step."""
    output = tmp_path / "model.safetensors"
    steps, learn = [0], Learner.step

    def failing(self: Learner, *arguments: object) -> torch.Tensor:
        steps[0] += 1
        if steps[0] == 8:
            raise SystemError("power")
        return learn(self, *arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(Learner, "step", failing)
    options: dict[str, Any] = {"execution": Execution(save_every=2), "precision": "bf16", "ema_decay": 0.9}
    with pytest.raises(SystemError, match="power"):
        run(data, output, **options)
    monkeypatch.undo()
    state = torch.load(tmp_path / "model.state.pt", weights_only=True)
    assert (len(state["history"]), state["step"]) == (1, 2)
    run(data, output, resume=True, **options)
    assert same_weights(output, whole)
    assert [row["loss"] for row in log(output)] == [row["loss"] for row in log(whole)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_between_two_steps(data: Path, tmp_path: Path, number: signal.Signals) -> None:
    output = tmp_path / "model.pt"
    command = [sys.executable, "-m", "lct_deploy", "train", "--data", str(data), "-o", str(output), *OPTIONS]
    with subprocess.Popen(
        [*command, "--epochs", "500"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert any(line.startswith("epoch 1:") for line in process.stderr)
        process.send_signal(number)
        rest = process.stderr.read()
        assert process.wait(timeout=60) == 1
    assert "Traceback" not in rest
    assert "error: stopped" in rest
    assert "--resume" in rest
    assert not output.exists()
    state = torch.load(tmp_path / "model.state.pt", weights_only=True)
    assert len(state["history"]) >= 1
    assert len(log(output)) == len(state["history"])


def test_a_signal_that_comes_in_a_destructor_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """There Python drops the KeyboardInterrupt: what runs next between two steps meets it."""
    dropped = list[Any]()
    monkeypatch.setattr(sys, "unraisablehook", dropped.append)

    class Told:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    stop = StopRequest()
    with stop.watching():
        Told()
        assert [type(unraisable.exc_value) for unraisable in dropped] == [KeyboardInterrupt]
        with pytest.raises(KeyboardInterrupt), stop.deferred():
            assert stop.asked == signal.SIGTERM


def test_the_other_memory_layout_trains_the_same_network(data: Path, tmp_path: Path) -> None:
    plain = run(data, tmp_path / "plain.pt", epochs=1, batch_size=60)
    other = run(
        data, tmp_path / "other.pt", epochs=1, batch_size=60, execution=Execution(channels_last=False)
    )
    assert other.loss == pytest.approx(plain.loss, rel=1e-3)
