"""An engine as its parent sees it: a process that is started, watched and stopped."""

import asyncio
import mmap
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from lct_deploy import errors
from lct_deploy.errors import LctDeployError, RuntimeUnavailableError
from server.engine.config import EngineConfig, EngineInfo
from server.engine.messages import LONGEST
from server.engine.slots import Geometry

STOP_SECONDS = 10
_MAX_LANES = 512  # a page of clocks


class Failure(BaseModel):
    """Why an engine could not start: an error of `lct_deploy.errors`, by name."""

    error: str
    message: str
    hint: str | None

    def exception(self) -> LctDeployError:
        return getattr(errors, self.error)(self.message, hint=self.hint)


class EngineProcess:
    """Runs until it is stopped, killed, or its parent dies."""

    def __init__(self, config: EngineConfig) -> None:
        """Start the process; `wait_ready` says whether it could."""
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        clocks = os.memfd_create("lct-clocks")
        os.ftruncate(clocks, _MAX_LANES * 8)
        self._running = np.frombuffer(mmap.mmap(clocks, _MAX_LANES * 8), np.float64)
        descriptors = (theirs.fileno(), clocks)
        command = [sys.executable, "-m", "server.engine", config.model_dump_json(), *map(str, descriptors)]
        try:
            # What it prints belongs in the log. A session of its own: Ctrl-C is for the parent alone.
            self._process = subprocess.Popen(  # noqa: S603
                command, stdin=subprocess.DEVNULL, stdout=2, pass_fds=descriptors, start_new_session=True
            )
        finally:
            theirs.close()
            os.close(clocks)

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self) -> EngineInfo:
        """What the engine says of itself once it has answered the golden inputs.

        Raises the error that it met, or RuntimeUnavailableError where it died without a word.
        """
        packet = self._control.recv(LONGEST)
        if not packet:
            code = self._process.wait()
            raise RuntimeUnavailableError(
                f"the engine process ended with {describe_exit(code)} while it was starting",
                hint="its messages are above",
            )
        try:
            return EngineInfo.model_validate_json(packet)
        except ValidationError:
            self._process.wait()
            raise Failure.model_validate_json(packet).exception() from None

    def attach(self, memory: int, geometry: Geometry) -> socket.socket:
        """A new connection that uses the slots in `memory`; the client's end of it.

        Raises OSError where the engine has died.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                document = geometry.model_dump_json().encode()
                socket.send_fds(self._control, [document], [theirs.fileno(), memory])
            except OSError:
                ours.close()
                raise
        return ours

    def when_ended(self, call: Callable[[], None]) -> None:
        """`call` in the running event loop as soon as the process is gone, until `forget`."""
        # An engine that is ready says nothing here any more: only its end can be read.
        asyncio.get_running_loop().add_reader(self._control.fileno(), call)

    def forget(self) -> None:
        """Undo `when_ended`; before the process is killed or stopped."""
        if self._control.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._control.fileno())

    def stuck_seconds(self) -> float:
        """For how long the slowest of its lanes has been computing one batch."""
        return longest_running(self._running)

    def exit_status(self) -> str | None:
        """How it ended, in words; None while it runs."""
        code = self._process.poll()
        return None if code is None else describe_exit(code)

    def kill(self) -> None:
        """End it at once, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        self._control.close()

    def stop(self) -> None:
        """Let it finish the batch that it is running, if any, and end."""
        self._control.close()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def longest_running(clocks: NDArray[np.float64]) -> float:
    """Seconds since the earliest of the lanes' `clocks` began, 0 where all of them are 0, which is idle.

    Others write to them meanwhile: each is read once, or one that has just become 0 would have run since the
    machine was started.
    """
    began = [clock for clock in clocks.tolist() if clock]
    return max(0.0, time.monotonic() - min(began)) if began else 0.0


def describe_exit(code: int) -> str:
    """A process's exit code in words, as `subprocess` tells it."""
    return f"signal {-code}" if code < 0 else f"exit code {code}"
