"""Servers to measure: started, waited for, looked at and stopped with all that they have started."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Self

import psutil

from benchmarks.serving import supervise
from benchmarks.serving.requests import Target
from benchmarks.serving.supervise import GRACE_SECONDS
from lct_deploy.errors import LctDeployError

SUPERVISE = str(Path(supervise.__file__))
START_SECONDS = 120.0
_LAST_LINES = 3
_TICK = 0.02


class ServerFailedError(LctDeployError):
    """A server that did not start, or ended while it was measured; the message has its last words."""


class Server:
    """A command at work under `supervise`; a context manager that stops it and all its processes."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        directory: Path | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        """`directory` is where it works; `prefix` is a command that runs it, such as taskset."""
        # Files: a pipe that nobody reads would stop a server that prints much.
        self._output, self._errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - closed on exit
        self.started = time.perf_counter()
        self._supervisor = subprocess.Popen(  # noqa: S603 - a program of ours
            [*prefix, sys.executable, "-P", SUPERVISE, *command],
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=self._errors,
            cwd=directory,
            env={**os.environ, **(environment or {})},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._output.close()
        self._errors.close()

    @property
    def alive(self) -> bool:
        return self._supervisor.poll() is None

    def url(self, seconds: float = START_SECONDS) -> str:
        """The line that the server prints once it takes requests; raises ServerFailedError without one."""
        while b"\n" not in (printed := _content(self._output)):
            if not self.alive:
                raise self.failed("did not start")
            if time.perf_counter() - self.started > seconds:
                raise self.failed(f"did not start within {seconds:.0f} s")
            time.sleep(_TICK)
        return printed.split(b"\n")[0].decode().strip()

    def wait_until(self, answers: Callable[[], bool], seconds: float = START_SECONDS) -> float:
        """Seconds from its start until it `answers`; raises ServerFailedError where it never does."""
        while not answers():
            if not self.alive:
                raise self.failed("ended before it answered")
            if time.perf_counter() - self.started > seconds:
                raise self.failed(f"did not answer within {seconds:.0f} s")
            time.sleep(_TICK)
        return time.perf_counter() - self.started

    def processes(self) -> list[psutil.Process]:
        """All that it consists of now, the supervisor excepted."""
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self._supervisor.pid).children(recursive=True)
        return []

    def signal(self, number: int) -> None:
        """To the command's own process, not to those that it has started."""
        (main, *_) = psutil.Process(self._supervisor.pid).children()
        main.send_signal(number)

    def check(self) -> None:
        """Raise ServerFailedError where it has ended by itself."""
        if not self.alive:
            raise self.failed("ended while it was measured")

    def wait(self, seconds: float) -> int | None:
        """Its exit code; None where it does not end in time."""
        try:
            return self._supervisor.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def stop(self) -> int:
        """SIGTERM, later SIGKILL; nothing of it is left afterwards."""
        if self.alive:
            self._supervisor.send_signal(signal.SIGTERM)
        self._supervisor.communicate(timeout=3 * GRACE_SECONDS)
        return self._supervisor.returncode

    def failed(self, how: str) -> ServerFailedError:
        """An error with the server's last lines; it is stopped first, so that these are all."""
        code = self.stop()
        text = (_content(self._output) + _content(self._errors)).decode(errors="replace")
        lines = [line.strip() for line in text.splitlines()]
        words = " | ".join([line for line in lines if line][-_LAST_LINES:])
        return ServerFailedError(f"{how} (exit code {code}): {words or 'it says nothing'}")


def _content(file: IO[bytes]) -> bytes:
    """All that stands in a file, read without moving the place at which its writer is."""
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0)


def lct_deploy_serve(*arguments: str) -> list[str]:
    """`lct-deploy serve` on a free port."""
    return [sys.executable, "-m", "lct_deploy", "serve", *arguments, "--port", "0", "--log-level", "error"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def ask(where: Target, index: int = 0, *, timeout: float = 30.0) -> tuple[int, bytes]:
    """Status and body of the answer to one request; status 0 where there is none."""
    try:
        with socket.create_connection((where.host, where.port), timeout=timeout) as connection:
            connection.sendall(where.requests[index])
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
