"""Environments for the peers: nothing of theirs comes into the project's own."""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence

from benchmarks.serving.peers.catalogue import Peer

_READY = ".ready"  # holds the hash of the requirements that are installed
_FAILED = ".failed"  # or why they could not be


def installed(peer: Peer) -> bool:
    ready = peer.directory / _READY
    return ready.is_file() and ready.read_text() == _wanted(peer)


def why_not(peer: Peer) -> str:
    """What its installation failed with, where it is not installed."""
    failed = peer.directory / _FAILED
    return f"could not be installed: {failed.read_text()}" if failed.is_file() else "is not installed"


def install(peer: Peer) -> str | None:
    """Make its environment anew; None, or why that failed."""
    shutil.rmtree(peer.directory, ignore_errors=True)
    peer.directory.parent.mkdir(parents=True, exist_ok=True)
    pip = str(peer.directory / "bin" / "python"), "-m", "pip", "install", "--quiet"
    for command in (
        (sys.executable, "-m", "venv", str(peer.directory)),
        (*pip, "--disable-pip-version-check", "--requirement", str(peer.requirements)),
    ):
        if failure := _run(command):
            peer.directory.mkdir(exist_ok=True)
            (peer.directory / _FAILED).write_text(failure)
            return failure
    (peer.directory / _READY).write_text(_wanted(peer))
    return None


def _run(command: Sequence[str]) -> str | None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - ours
    if done.returncode == 0:
        return None
    errors = [line for line in (done.stderr + done.stdout).splitlines() if line.startswith("ERROR")]
    return " | ".join(errors) or f"{command[0]} failed with {done.returncode}"


def _wanted(peer: Peer) -> str:
    return hashlib.sha256(peer.requirements.read_bytes()).hexdigest()
