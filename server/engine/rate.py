"""How fast an engine answers, for the time after which to come back."""

import math
import time
from collections.abc import Callable

_SECONDS = 5.0  # after which a completion counts 1/e


class CompletionRate:
    """Images a second, the recent past weighing most."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = self._last = clock()
        self._weight = 0.0

    def add(self, images: int) -> None:
        self._decay()
        self._weight += images

    def per_second(self) -> float:
        """0 as long as nothing has been completed."""
        self._decay()
        seen = _SECONDS * -math.expm1(-(self._last - self._began) / _SECONDS)
        return self._weight / seen if seen > 0 else 0.0

    def _decay(self) -> None:
        now = self._clock()
        self._weight *= math.exp((self._last - now) / _SECONDS)
        self._last = now
