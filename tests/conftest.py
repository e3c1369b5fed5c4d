"""Networks, checkpoints and bundles that tests share.

Networks have random weights with calibrated BatchNorm statistics and random w and b: at the
initial w = 0 every gate is constant and would hide errors.
"""

import fcntl
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from exporters.export import export as export_source
from exporters.options import ExportOptions
from lct_deploy.architecture import ModelConfig, model_config
from lct_deploy.cli import main
from lct_deploy.manifest import Manifest
from lct_deploy.models import ResNet, build_model
from lct_deploy.models.resnet import calibrate_batch_norm
from lct_deploy.sample import DEMO_CHECKPOINT
from tests.traces import traced_once

# The tests start hundreds of processes, each of which would compile all our modules anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Small networks gain nothing from a second thread, and lose much where the machine is shared.
torch.set_num_threads(1)

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
QuickCli = Callable[..., "Outcome"]


def random_network(config: ModelConfig, *, size: int = 32, seed: int = 0) -> ResNet:
    """A network in evaluation mode whose gates and activations vary as a trained one's do."""
    torch.manual_seed(seed)
    network = build_model(config)
    for attention in network.attention_blocks().values():
        for name, parameter in attention.named_parameters():
            if name in ("w", "b"):
                nn.init.normal_(parameter)
    calibrate_batch_norm(network, [torch.randn(8, 3, size, size)])
    return network.requires_grad_(False)


def of_the_run(factory: pytest.TempPathFactory) -> Path:
    """What all processes that run tests share."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def _traced_once(tmp_path_factory: pytest.TempPathFactory) -> Generator[None]:
    directory = of_the_run(tmp_path_factory) / "traces"
    directory.mkdir(exist_ok=True)
    with traced_once(directory):
        yield


@pytest.fixture(scope="session")
def lct18(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare torchvision-style state dict of an lct_resnet18 with 7 classes."""
    path = tmp_path_factory.mktemp("checkpoints") / "lct18.pt"
    torch.save(random_network(model_config("lct_resnet18", num_classes=7)).state_dict(), path)
    return path


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped checkpoint, exported."""
    return made_once(tmp_path_factory, "demo", lambda path: export(DEMO_CHECKPOINT, path))


@pytest.fixture(scope="session")
def slow_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that computes for tens of milliseconds an image."""

    def make(path: Path) -> None:
        checkpoint = tmp_path_factory.mktemp("slow") / "slow.pt"
        torch.save(random_network(model_config("lct_resnet18", num_classes=7)).state_dict(), checkpoint)
        export(checkpoint, path)

    return made_once(tmp_path_factory, "slow", make)


@pytest.fixture(scope="session")
def openvino_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped checkpoint, exported for OpenVINO in fp32."""
    options = ExportOptions(target="openvino")
    return made_once(tmp_path_factory, "openvino", lambda path: export(DEMO_CHECKPOINT, path, options))


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A bundle for all processes that run tests: the first that needs it makes it, others wait."""
    directory = of_the_run(factory)
    path = directory / "bundles" / name
    path.parent.mkdir(exist_ok=True)
    with (directory / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.is_dir():
            make(path)
    return path


def export(checkpoint: Path, output: Path, options: ExportOptions | None = None) -> Manifest:
    return export_source(
        checkpoint, output, options or ExportOptions(), command="lct-deploy export", announce=lambda _: None
    )


@dataclass(frozen=True)
class Outcome:
    """What a command line did."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def quick_cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Generator[QuickCli]:
    """`lct-deploy` in this process: the same entry point, without importing torch each time."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["lct-deploy", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0
        captured = capfd.readouterr()
        return Outcome(code, str(captured.out), str(captured.err))

    yield run
    # What `serve` has set up would write the log of every later command to this test's stderr.
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="session")
def cli() -> Cli:
    """`lct-deploy` in a process of its own."""

    def run(*arguments: object, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "lct_deploy", *map(str, arguments)]
        environment = {**os.environ, "COLUMNS": "200"}
        return subprocess.run(
            command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=300, check=False
        )

    return run
