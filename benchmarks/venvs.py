"""Environments for what is compared with us: nothing of theirs comes into the project's own."""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ENVIRONMENTS = Path(__file__).parent.parent / "build" / "peers"
_READY = ".ready"  # holds the hash of the requirements that are installed
_FAILED = ".failed"  # or why they could not be


@dataclass(frozen=True, kw_only=True)
class Venv:
    """An environment under build/peers with what a file of pinned requirements names."""

    name: str
    requirements: Path

    @property
    def directory(self) -> Path:
        return ENVIRONMENTS / self.name

    @property
    def python(self) -> Path:
        return self.directory / "bin" / "python"

    @property
    def installed(self) -> bool:
        ready = self.directory / _READY
        return ready.is_file() and ready.read_text() == self._wanted()

    def why_not(self) -> str:
        """What its installation failed with, where it is not installed."""
        failed = self.directory / _FAILED
        return f"could not be installed: {failed.read_text()}" if failed.is_file() else "is not installed"

    def version(self, package: str) -> str:
        """The pinned one."""
        pins = dict(line.split("==") for line in self.requirements.read_text().split() if "==" in line)
        return f"{package} {pins[package]}"

    def install(self) -> str | None:
        """Make it anew; None, or why that failed."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        pip = str(self.python), "-m", "pip", "install", "--quiet"
        for command in (
            (sys.executable, "-m", "venv", str(self.directory)),
            (*pip, "--disable-pip-version-check", "--requirement", str(self.requirements)),
        ):
            if failure := _run(command):
                self.directory.mkdir(exist_ok=True)
                (self.directory / _FAILED).write_text(failure)
                return failure
        (self.directory / _READY).write_text(self._wanted())
        return None

    def _wanted(self) -> str:
        return hashlib.sha256(self.requirements.read_bytes()).hexdigest()


def _run(command: Sequence[str]) -> str | None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - ours
    if done.returncode == 0:
        return None
    errors = [line for line in (done.stderr + done.stdout).splitlines() if line.startswith("ERROR")]
    return " | ".join(errors) or f"{command[0]} failed with {done.returncode}"
