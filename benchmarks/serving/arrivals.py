"""When requests of an open loop are due, and a clock that says so on time."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray


def poisson_arrivals(rate: float, seconds: float, *, seed: int) -> NDArray[np.float64]:
    """Moments in [0, seconds) at which independent callers ask, `rate` a second on average."""
    random = np.random.default_rng(seed)
    # Nine standard deviations more than are expected; none are missing, short of a broken generator.
    expected = rate * seconds
    gaps = random.exponential(1 / rate, int(expected + 9 * np.sqrt(expected) + 30))
    moments = np.cumsum(gaps)
    return moments[moments < seconds]


class Pacer:
    """Calls `due(index)` in the event loop when each arrival is due, whatever became of those before.

    Timers of event loops count whole milliseconds, as long as some requests take. A thread that sleeps
    is late by a tenth of that.
    """

    def __init__(self, arrivals: Sequence[float], due: Callable[[int], None]) -> None:
        self._arrivals, self._due = arrivals, due
        self._loop = asyncio.get_running_loop()
        self._done = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="pacer", daemon=True)
        self.started = 0.0

    async def run(self) -> None:
        """Return once all are due; `started` is `time.perf_counter` at moment 0."""
        self.started = time.perf_counter()
        self._thread.start()
        await self._done.wait()

    def _run(self) -> None:
        for index, moment in enumerate(self._arrivals):
            wait = self.started + moment - time.perf_counter()
            if wait > 0:
                time.sleep(wait)
            self._loop.call_soon_threadsafe(self._due, index)
        self._loop.call_soon_threadsafe(self._done.set)
