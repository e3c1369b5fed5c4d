"""Workers as the measuring process sees them: started, given turns one at a time, halted between them."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from pydantic import ValidationError

from benchmarks.measure.messages import Failed, Message, Opened, Subject, Taken, Turn
from lct_deploy.errors import LctDeployError

M = TypeVar("M", bound=Message)
ROOT = Path(__file__).parent.parent.parent


class SubjectFailedError(LctDeployError):
    """A subject that could not be opened, or failed while it was measured; its row says so."""


class Worker:
    """A process with one subject; a context manager that ends it.

    It is stopped (SIGSTOP) unless it has its turn: threads of some libraries spin for a while after their
    work, on the cores of whoever is measured next.
    """

    def __init__(self, subject: Subject) -> None:
        """Begins to open the subject; `opened` waits for it.

        Raises SubjectFailedError where its environment is not there.
        """
        self.subject = subject
        python = subject.python or Path(sys.executable)
        if not python.is_file():
            hint = "python -m benchmarks.peers install"
            raise SubjectFailedError(f"{subject.kind} is not installed: no {python}", hint=hint)
        described = subject.model_dump_json(exclude={"python", "project"}, exclude_defaults=True)
        self._process = subprocess.Popen(  # noqa: S603 - a program of ours
            [str(python), "-m", "benchmarks.measure.worker", described],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, "PYTHONPATH": str(subject.project or ROOT)},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def pid(self) -> int:
        return self._process.pid

    def opened(self) -> Opened:
        """What it is; raises SubjectFailedError where it cannot be opened."""
        opened = self._read(Opened)
        self._process.send_signal(signal.SIGSTOP)
        return opened

    def take(self, turn: Turn) -> Taken:
        """Raises SubjectFailedError where it fails or dies; it can then not be asked again."""
        assert self._process.stdin is not None  # noqa: S101 - it is piped
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.stdin.write(turn.model_dump_json() + "\n")
        except BrokenPipeError:
            raise self._died() from None
        taken = self._read(Taken)
        self._process.send_signal(signal.SIGSTOP)
        return taken

    def _read(self, kind: type[M]) -> M:
        assert self._process.stdout is not None  # noqa: S101 - it is piped
        line = self._process.stdout.readline()
        if not line:
            raise self._died()
        try:
            return kind.model_validate_json(line)
        except ValidationError:
            failed = Failed.model_validate_json(line)
            raise SubjectFailedError(failed.error, hint=failed.hint) from None

    def _died(self) -> SubjectFailedError:
        return SubjectFailedError(f"its process ended with {self._process.wait()}; its message stands above")
