"""Ctrl-C and SIGTERM: a run that is told to stop ends between two steps, with its state saved."""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether this process was told to stop; outside of `deferred` it does so at once.

    A second Ctrl-C does not wait either. Python drops a KeyboardInterrupt that is raised in a destructor,
    such as that of a loader's processes: what was told then is met at the next step.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._deferring = False

    @contextmanager
    def watching(self) -> Generator[None]:
        """Listen to the signals, where this is the thread that may."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Generator[None]:
        """A signal is kept in `asked`; one that nobody has met by the end raises KeyboardInterrupt then."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        if self.asked is not None:
            raise KeyboardInterrupt

    def _receive(self, number: int, frame: FrameType | None) -> None:
        impatient = number == signal.SIGINT == self.asked
        self.asked = signal.Signals(number)
        if not self._deferring or impatient:
            raise KeyboardInterrupt
