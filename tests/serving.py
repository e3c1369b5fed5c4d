"""A real server and what tests send it."""

import io
import json
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from PIL import Image

from lct_deploy.sample import load_sample

_USUAL: Mapping[str, object] = {"drain_seconds": 0, "workers": 1}


class Server:
    """`lct-deploy serve` in a process of its own, ready when constructed; LCT_… settings by keyword.

    One worker, unless told otherwise: what holds for several is for tests of those. None is the default.

    As a context manager it has to end as it should: exit code 0, no traceback.
    """

    def __init__(self, *arguments: object, **settings: object) -> None:
        command = [sys.executable, "-m", "lct_deploy", "serve", *map(str, arguments), "--port", "0"]
        told = {f"LCT_{name.upper()}": value for name, value in {**_USUAL, **settings}.items()}
        variables: Mapping[str, object] = {**os.environ, **told}
        environment = {name: str(value) for name, value in variables.items() if value is not None}
        # No pipe: one that nobody reads fills up, and the server waits.
        self._log = os.memfd_create("log")
        weakref.finalize(self, os.close, self._log)
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._log, text=True, env=environment
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        if not self.url:
            self.process.communicate()
            raise AssertionError(self.messages())

    def messages(self) -> str:
        """What it has written to stderr so far."""
        return os.pread(self._log, os.fstat(self._log).st_size, 0).decode()

    def log(self) -> list[dict[str, Any]]:
        """The lines of its log; each has to be JSON."""
        return [json.loads(line) for line in self.messages().splitlines()]

    def stop(self, how: int = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(how)
        self.process.communicate(timeout=60)
        return self.process.returncode, self.messages()

    def engines(self) -> list[int]:
        """Process ids of the engines, in the order in which they were started."""
        return self._children("server.engine")

    def workers(self) -> list[int]:
        """Process ids of the workers, likewise."""
        return self._children("server.workers")

    def _children(self, module: str) -> list[int]:
        threads = Path(f"/proc/{self.process.pid}/task").iterdir()
        children = [int(pid) for thread in threads for pid in (thread / "children").read_text().split()]
        return sorted((pid for pid in children if module in command_of(pid)), key=_started)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        code, messages = self.stop()
        if error is None:
            assert code == 0, messages
            assert "Traceback" not in messages


def command_of(pid: int) -> list[str]:
    """The command line of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


def _started(pid: int) -> tuple[int, int]:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return (0, pid)
    return (int(stat.rpartition(")")[2].split()[19]), pid)


def encoded(index: int = 0, kind: str = "PNG", size: int | None = None) -> bytes:
    """A sample image as a file."""
    image = Image.fromarray(load_sample().images[index])
    stream = io.BytesIO()
    (image.resize((size, size)) if size else image).save(stream, kind)
    return stream.getvalue()


def classify(http: httpx.Client, body: bytes, kind: str = "image/png", **query: str | int) -> httpx.Response:
    return http.post("/v1/classify", content=body, headers={"Content-Type": kind}, params=query)


def upload(http: httpx.Client, *bodies: bytes, name: str = "file", **query: str | int) -> httpx.Response:
    files = [(name, (f"{i}.png", body, "image/png")) for i, body in enumerate(bodies)]
    return http.post("/v1/classify", files=files, params=query)


def assert_problem(response: httpx.Response, status: int, detail: str) -> None:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert set(problem) == {"type", "title", "status", "detail"}
    assert problem["status"] == status
    assert detail in problem["detail"]
