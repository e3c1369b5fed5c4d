"""A new environment with only the extras `serve` and `cpu`: it serves a bundle, without torch."""

import json
import shlex
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Generator
from pathlib import Path

import pytest
from PIL import Image

from lct_deploy.sample import load_sample
from tests.test_readme import readme_commands

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the environment's programs, installed as the README says from a copy."""
    directory = tmp_path_factory.mktemp("environment")
    left_out = shutil.ignore_patterns(".venv", ".git", "build", "runs", "*.egg-info", "__pycache__")
    source = shutil.copytree(ROOT, directory / "source", ignore=left_out)
    subprocess.run([sys.executable, "-m", "venv", directory], check=True)
    command = next(c for c in readme_commands() if c.startswith("pip install"))
    subprocess.run(
        [directory / "bin" / "pip", *shlex.split(command)[1:]], cwd=source, check=True, timeout=600
    )
    return directory / "bin"


@pytest.fixture(scope="module")
def url(environment: Path, demo_bundle: Path) -> Generator[str]:
    command = [environment / "lct-deploy", "serve", demo_bundle, "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    yield server.stdout.readline().strip()
    server.terminate()
    server.stdout.close()
    assert server.wait(timeout=30) == 0


def installed(environment: Path) -> set[str]:
    listing = subprocess.run(
        [environment / "pip", "list", "--format=json"], check=True, capture_output=True, text=True
    )
    return {package["name"].lower() for package in json.loads(listing.stdout)}


def test_it_has_no_torch_and_no_exporter(environment: Path) -> None:
    packages = installed(environment)
    assert {"lct-deploy", "onnxruntime", "fastapi", "uvicorn"} <= packages
    assert not packages & {"torch", "onnx", "onnxscript", "safetensors"}


def test_it_serves(url: str) -> None:
    with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=10) as response:
        assert json.load(response) == {"ready": True}


def test_it_has_the_page(url: str) -> None:
    for path in ("", "page/app.js", "page/style.css", "page/icon.svg", "samples/0.png"):
        with urllib.request.urlopen(f"{url}/{path}", timeout=10) as response:
            assert response.read()


def test_it_predicts(environment: Path, demo_bundle: Path, tmp_path: Path) -> None:
    Image.fromarray(load_sample().images[0]).save(tmp_path / "boot.png")
    command = [environment / "lct-deploy", "predict", demo_bundle, tmp_path / "boot.png", "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["images"][0]["predictions"][0]["label"] == "Ankle boot"


def test_exporting_there_names_the_extra_that_is_missing(environment: Path, tmp_path: Path) -> None:
    command = [environment / "lct-deploy", "export", "x.pt", "-o", tmp_path / "bundle"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install 'lct-deploy[export]'" in done.stderr
