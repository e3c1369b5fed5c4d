"""Every command of the README runs, in the order in which a reader meets them."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lct_deploy.architecture import model_config
from lct_deploy.checkpoint import load_checkpoint, write_checkpoint
from lct_deploy.sample import DEMO_CHECKPOINT, load_sample
from tests.conftest import random_network
from tests.idx import write_idx_dataset

ROOT = Path(__file__).parent.parent
BY_CI = ("make demo", "make test")  # .ci/run types these itself
ELSEWHERE = ("pip install",)  # test_serving_environment.py runs it in a new environment


def readme_commands() -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert all(line.startswith("$ ") for line in lines)
    return [line.removeprefix("$ ") for line in lines]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the files that the README names.

    The network is trained, and has its own preprocessing: with another its margins are so thin that
    which images int8 flips is chance.
    """
    directory = tmp_path_factory.mktemp("readme")
    loaded = load_checkpoint(DEMO_CHECKPOINT)
    network = loaded.model
    assert loaded.metadata is not None
    write_checkpoint(directory / "checkpoint.pt", network.state_dict(), loaded.metadata)
    with warnings.catch_warnings(action="ignore"):  # torch's own, of what it deprecates
        torch.onnx.export(network, (torch.zeros(1, 3, 32, 32),), directory / "model.onnx", verbose=False)
    # The shipped network has no four stages.
    detector = random_network(model_config("lct_resnet18")).state_dict()
    torch.save({f"backbone.{name}": value for name, value in detector.items()}, directory / "detector.pth")
    (directory / "labels.txt").write_text("\n".join(f"label {i}" for i in range(10)))
    for folder, images in (
        ("photos", load_sample().images[:256]),
        ("photos-other", load_sample().images[256:]),
    ):
        (directory / folder).mkdir()
        for index, image in enumerate(images):
            Image.fromarray(image).save(directory / folder / f"{index}.png")
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(directory / "photo.jpg")
    Image.fromarray(pixels).save(directory / "other.png")
    write_idx_dataset(directory / "data", classes=3, train=90, test=30)
    return directory


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "LCT_PORT": str(port)}


@pytest.fixture(scope="module")
def servers() -> Generator[list["subprocess.Popen[bytes]"]]:
    """Servers that the README starts, stopped at the end."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for server in started:
        server.terminate()
        assert server.wait(timeout=30) == 0


def wait_until_ready(port: str) -> None:
    for _ in range(100):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5).close()
        except urllib.error.URLError:
            time.sleep(0.2)
        else:
            return
    pytest.fail("the server did not become ready")


def test_ci_types_the_commands_that_a_newcomer_types() -> None:
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    assert all(command in script for command in BY_CI)
    assert all(command in readme_commands() for command in BY_CI)


@pytest.mark.parametrize("command", [c for c in readme_commands() if not c.startswith(BY_CI + ELSEWHERE)])
def test_command(
    command: str, workplace: Path, environment: dict[str, str], servers: list["subprocess.Popen[bytes]"]
) -> None:
    port = environment["LCT_PORT"]
    command = command.replace(":8000/", f":{port}/")
    if "serve" in command.split()[:2]:
        servers.append(subprocess.Popen(command.split(), cwd=workplace, env=environment))
        wait_until_ready(port)
        return
    if command.startswith("curl"):
        command = command.replace("curl ", "curl --silent --show-error --fail ", 1)
    done = subprocess.run(
        command,
        shell=True,
        cwd=workplace,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    if command.startswith("curl"):
        assert '"label":"label ' in done.stdout


def test_links_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
