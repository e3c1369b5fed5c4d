"""TensorRT's progress monitor as a bar, and Ctrl-C while it builds."""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lct_deploy.progress import progress_bar
from lct_deploy.runtime.flavours import Flavour

_STEPS = 100


class Phases:
    """The builder's nested phases as one share of the whole; called from its threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._phases: dict[str, list[int]] = {}  # name → steps done, steps; the innermost last
        self._share = 0.0

    def start(self, name: str, steps: int) -> None:
        with self._lock:
            self._phases[name] = [0, max(steps, 1)]

    def step(self, name: str, step: int) -> None:
        with self._lock:
            if phase := self._phases.get(name):
                phase[0] = step + 1

    def finish(self, name: str) -> None:
        with self._lock:
            self._phases.pop(name, None)

    @property
    def share(self) -> float:
        """From 0 to 1, never less than before: phases of several threads may overlap."""
        with self._lock:
            share = 0.0
            for done, steps in reversed(self._phases.values()):
                share = min((done + share) / steps, 1.0)
            self._share = max(self._share, share)
            return self._share


@contextmanager
def build_progress(flavour: Flavour, description: str) -> Generator[Any]:
    """A progress monitor for a builder's configuration, shown as a bar.

    An interrupt meanwhile ends the build at its next step, and is then raised: an exception in the middle
    of TensorRT's own code would abort the process.
    """
    stop = threading.Event()
    with _deferred_interrupt(stop), progress_bar() as bar:
        task = bar.add_task(description, total=_STEPS, status="")
        phases = Phases()

        def show(status: str) -> None:
            bar.update(task, completed=int(phases.share * _STEPS), status=status)

        yield _monitor(flavour.module, phases, show, stop)
    if stop.is_set():
        raise KeyboardInterrupt


def _monitor(trt: Any, phases: Phases, show: Any, stop: threading.Event) -> Any:
    class Monitor(trt.IProgressMonitor):  # pyright: ignore[reportUntypedBaseClass]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, num_steps)
            show(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            phases.step(phase_name, step)
            show(phase_name)
            return not stop.is_set()

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

    return Monitor()


@contextmanager
def _deferred_interrupt(stop: threading.Event) -> Generator[None]:
    """Note Ctrl-C instead of raising it; only the main thread receives it, and may say what it does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        stop.set()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
