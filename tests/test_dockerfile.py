"""The images: what the Dockerfile promises, and its CPU target's own commands at work.

No engine is needed: the steps are read out of the Dockerfile and run in a directory that stands for
the image's `/`, with the interpreter of the tests in place of the base image's.
"""

import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import string
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from dockerfile_parse import DockerfileParser
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from server.settings import ServerSettings

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TARGETS = ("cpu", "gpu")
VENV = "/opt/lct-deploy"
MEGABYTE = 10**6
SIZE_LIMIT = 700 * MEGABYTE
BASE_IMAGE_SIZE = 150 * MEGABYTE  # more than Debian's slim Python images weigh unpacked


@dataclass(frozen=True)
class Step:
    """One instruction: `RUN --mount=… pip install …` has a flag and a value."""

    instruction: str
    flags: tuple[str, ...]
    value: str


@dataclass(frozen=True)
class Stage:
    base: str
    steps: tuple[Step, ...]


def _step(instruction: str, text: str) -> Step:
    flags: list[str] = []
    while text.startswith("--"):
        flag, _, text = text.partition(" ")
        flags.append(flag)
        text = text.lstrip()
    return Step(instruction, tuple(flags), text)


def _stages() -> dict[str, Stage]:
    source = io.StringIO((ROOT / "Dockerfile").read_text())
    stages: dict[str, Stage] = {}
    name = ""
    for entry in DockerfileParser(fileobj=source).structure:
        if entry["instruction"] == "FROM":
            base, name = re.split(r"\s+AS\s+", entry["value"])
            stages[name] = Stage(base, ())
        elif entry["instruction"] != "COMMENT":
            before = stages[name]
            stages[name] = Stage(before.base, (*before.steps, _step(entry["instruction"], entry["value"])))
    return stages


STAGES = _stages()


def _steps(stage: str, *instructions: str) -> list[Step]:
    """The steps that make a stage, those of the stages it is built from first."""
    if stage not in STAGES:
        return []
    inherited = _steps(STAGES[stage].base, *instructions)
    return [*inherited, *(step for step in STAGES[stage].steps if step.instruction in instructions)]


def _last(stage: str, instruction: str) -> str:
    return _steps(stage, instruction)[-1].value


def _health_command(stage: str) -> list[str]:
    kind, command = _last(stage, "HEALTHCHECK").split(maxsplit=1)
    assert kind == "CMD"
    return json.loads(command)


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    found = subprocess.run(
        [hadolint, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


def test_images_from_outside_are_pinned_to_a_patch_release() -> None:
    named = {stage.base for stage in STAGES.values()}
    for stage in STAGES:
        for step in _steps(stage, "COPY", "RUN"):
            named |= {image for flag in step.flags for image in re.findall(r"\bfrom=([^,]+)", flag)}
    for image in named - STAGES.keys():
        assert re.fullmatch(r"[a-z./-]+:\d+\.\d+\.\d+(-[a-z]+)*(@sha256:[0-9a-f]{64})?", image)


def test_the_frontend_is_pinned() -> None:
    first = (ROOT / "Dockerfile").read_text().splitlines()[0]
    assert re.fullmatch(r"# syntax=docker/dockerfile:\d+\.\d+", first)


def test_the_interpreter_is_one_that_the_project_supports() -> None:
    outside = {stage.base for stage in STAGES.values()} - STAGES.keys()
    (version,) = {re.split("[:-]", image)[1] for image in outside}
    assert Requirement(f"python{PYPROJECT['project']['requires-python']}").specifier.contains(version)


def test_nothing_is_added_from_the_network_or_from_archives() -> None:
    assert not [step for stage in STAGES for step in _steps(stage, "ADD")]


def test_a_plain_build_makes_the_cpu_image() -> None:
    assert list(STAGES)[-1] == "cpu"


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_holds_the_environment_and_nothing_of_the_build(target: str) -> None:
    (copy,) = _steps(target, "COPY")
    assert copy == Step("COPY", (f"--from=venv-{target}",), f"{VENV} {VENV}")
    assert not [step for step in _steps(target, "RUN") if "pip" in step.value]


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_as_an_unprivileged_user(target: str) -> None:
    user, group = _last(target, "USER").split(":")
    assert int(user) > 0
    assert int(group) > 0


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_starts_the_server_without_a_shell(target: str) -> None:
    assert json.loads(_last(target, "ENTRYPOINT")) == ["lct-deploy"]
    assert json.loads(_last(target, "CMD"))[0] == "serve"
    assert _last(target, "STOPSIGNAL") == "SIGTERM"


@pytest.mark.parametrize("target", TARGETS)
def test_health_is_asked_where_the_server_listens(target: str) -> None:
    program, *arguments = _health_command(target)
    default = ServerSettings.model_fields["port"].default
    assert program == "python"
    assert f"('127.0.0.1', {default}," in arguments[1]
    assert _last(target, "EXPOSE") == str(default)


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_carries_the_licence_of_the_project(target: str) -> None:
    labels = dict(pair.split("=", 1) for pair in shlex.split(_last(target, "LABEL")))
    assert labels["org.opencontainers.image.licenses"] == PYPROJECT["project"]["license"]


def test_downloads_are_cached_outside_the_layers() -> None:
    steps = [step for stage in STAGES.values() for step in stage.steps if "-m pip" in step.value]
    assert {step.flags for step in steps} == {("--mount=type=cache,target=/root/.cache/pip",)}


def test_the_build_context_is_what_the_build_copies() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] != "#"]
    assert rules[0] == "*"
    admitted = {rule[1:] for rule in rules if rule.startswith("!")}
    assert admitted == {source for step in _steps("build", "COPY") for source in _copied(step)[0]}


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_installs_the_wheel_as_a_user_would(target: str) -> None:
    command = _last(f"venv-{target}", "RUN").split(" && ")[-1].strip()
    assert command.endswith(f'install -c constraints.txt "$1[serve,{target}]"')


def test_the_gpu_target_asks_for_cuda_13_packages_and_no_cpu_runtime() -> None:
    """Checked by name and pin alone.

    Of what this target installs, TensorRT's libraries come from NVIDIA's own index, which most
    machines that run the tests do not reach: that the environment works is for a machine with a GPU.
    """
    extras = PYPROJECT["project"]["optional-dependencies"]
    gpu = {requirement.name: requirement for requirement in map(Requirement, extras["gpu"])}
    assert set(map(canonicalize_name, gpu)) == {"onnxruntime-gpu", "tensorrt", "cuda-bindings"}
    # The provider links against CUDA's and cuDNN's libraries, which its wheel does not hold.
    assert gpu["onnxruntime-gpu"].extras == {"cuda", "cudnn"}
    # Each package's first release for CUDA 13: two CUDA generations in one process do not mix.
    last_for_cuda_12 = {"onnxruntime-gpu": "1.26.0", "tensorrt": "10.12.0.36", "cuda-bindings": "12.9.10"}
    for name, version in last_for_cuda_12.items():
        assert not gpu[name].specifier.contains(version), name


def test_the_gpu_target_is_as_reproducible_as_the_cpu_one() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pinned = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    for text in [*project["dependencies"], *extras["serve"], *extras["gpu"]]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), text


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_asks_for_neither_torch_nor_onnx(target: str) -> None:
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["serve"], *extras[target]]
    assert not {Requirement(text).name for text in asked} & {"torch", "onnx", "onnxscript"}


# From here on the CPU target's steps run.


@dataclass(frozen=True)
class Container:
    """A directory that stands for an image's `/`, and the variables that the image sets."""

    root: Path
    environment: Mapping[str, str]

    def path(self, text: str) -> str:
        """The image's paths in a text, as they lie here; those of the system stay."""
        return re.sub(r"(?<![\w.])/(?=(src|dist|opt|models)\b)", f"{self.root}/", text)

    def run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """A command as the image would run it, found on the image's PATH."""
        return subprocess.run(
            command,
            env=self.environment,
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Container:
    """The CPU target, made by the steps of the stages behind it."""
    root = tmp_path_factory.mktemp("image")
    # `python` is the base image's there, and that of the tests here.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    build = Container(root, _environment("venv-cpu", root, {**os.environ, "PATH": path}))
    directory = root
    for step in _steps("venv-cpu", "WORKDIR", "COPY", "RUN"):
        if step.instruction == "WORKDIR":
            directory = Path(build.path(step.value))
            directory.mkdir(parents=True)
        elif step.instruction == "COPY":
            _copy(step, directory)
        else:
            subprocess.run(
                ["sh", "-c", build.path(step.value)], env=build.environment, cwd=directory, check=True
            )
    return Container(root, _environment("cpu", root, {"PATH": "/usr/local/bin:/usr/bin:/bin"}))


def _environment(stage: str, root: Path, inherited: Mapping[str, str]) -> dict[str, str]:
    environment = dict(inherited)
    for step in _steps(stage, "ENV"):
        for pair in shlex.split(Container(root, {}).path(step.value)):
            name, value = pair.split("=", 1)
            environment[name] = string.Template(value).substitute(environment)
    return environment


def _copied(step: Step) -> tuple[list[str], str]:
    *sources, target = step.value.split()
    return sources, target


def _dockerignored() -> list[str]:
    """Names that .dockerignore keeps out of the folders that it lets in."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return [line.rpartition("/")[2] for line in lines if line and line[0] not in "#!" and line != "*"]


def _copy(step: Step, directory: Path) -> None:
    sources, target = _copied(step)
    for source in sources:
        if (ROOT / source).is_dir():
            ignored = shutil.ignore_patterns(*_dockerignored())
            shutil.copytree(ROOT / source, directory / target, ignore=ignored)
        else:
            shutil.copy(ROOT / source, directory / target)


def test_the_wheel_holds_every_file_of_the_packages(image: Container) -> None:
    (wheel,) = (image.root / "dist").iterdir()
    source = image.root / "src"
    packages = [
        name.removesuffix("*") for name in PYPROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    ]
    assert all((source / package / "__init__.py").is_file() for package in packages)
    files = [path for package in packages for path in (source / package).rglob("*") if path.is_file()]
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    assert {str(path.relative_to(source)) for path in files} - packed == set()


def test_the_environment_has_neither_torch_nor_onnx_nor_pip(image: Container) -> None:
    code = (
        "import importlib.util as u, onnxruntime, server.alone, server.workers.supervisor;"
        "print([n for n in ('torch', 'onnx', 'onnxscript', 'pip') if u.find_spec(n)])"
    )
    ran = image.run("python", "-c", code)
    assert (ran.returncode, ran.stdout.strip()) == (0, "[]"), ran.stderr


def test_the_image_stays_under_its_size_limit(image: Container) -> None:
    files = [path for path in Path(image.path(VENV)).rglob("*") if not path.is_symlink() and path.is_file()]
    installed = sum(path.stat().st_size for path in files)
    assert installed > 50 * MEGABYTE  # what numpy and onnxruntime weigh: the right folder was measured
    assert installed + BASE_IMAGE_SIZE < SIZE_LIMIT


def test_the_entry_point_is_in_the_environment(image: Container) -> None:
    ran = image.run(*json.loads(_last("cpu", "ENTRYPOINT")), "--help")
    assert ran.returncode == 0, ran.stderr
    assert "serve" in ran.stdout


@pytest.mark.parametrize(
    "command",
    [json.loads(_last("cpu", "CMD")), ["serve", "/models/default"]],
    ids=["the image's command", "a command without --host"],
)
def test_the_image_serves_a_bundle_until_stopped(
    image: Container, demo_bundle: Path, command: list[str], tmp_path: Path
) -> None:
    shutil.copytree(demo_bundle, image.path("/models/default"), dirs_exist_ok=True)
    port = _free_port()
    assert _health(image, port) == 1  # an engine knows 0 and 1 only
    home = tmp_path / "home"
    home.mkdir()
    with _started(image, [*command, "--port", str(port)], home, tmp_path / "log") as server:
        deadline = time.monotonic() + 60
        while _health(image, port) != 0:
            assert server.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        server.send_signal(signal.Signals[_last("cpu", "STOPSIGNAL")])
        assert server.wait(timeout=30) == 0
    # Reached from outside the container, so not on its loopback address alone.
    assert f"http://0.0.0.0:{port}" in (tmp_path / "log").read_text()
    assert list(home.rglob("*")) == []  # no cache, and nothing that identifies the machine to anyone


def _health(image: Container, port: int) -> int:
    """The exit code of the image's own check, on a machine that sends HTTP through a proxy."""
    command = [part.replace("8000", str(port)) for part in _health_command("cpu")]
    proxied = Container(image.root, {**image.environment, "http_proxy": "http://127.0.0.1:9"})
    return proxied.run(*command).returncode


@contextmanager
def _started(
    image: Container, command: list[str], home: Path, log: Path
) -> Generator["subprocess.Popen[bytes]"]:
    arguments = [*json.loads(_last("cpu", "ENTRYPOINT")), *map(image.path, command)]
    environment = {**image.environment, "HOME": str(home)}
    with (
        log.open("wb") as output,
        subprocess.Popen(
            arguments, env=environment, cwd=image.root, stdout=output, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
