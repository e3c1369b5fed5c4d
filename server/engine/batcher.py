"""Which requests run together: first come, first served, as full as the batch sizes allow."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from server.engine.config import BatchSizes

if TYPE_CHECKING:
    from server.engine.connection import Connection


@dataclass(eq=False, slots=True, kw_only=True)
class Request:
    """Images of one client, some or all of which still wait."""

    id: int
    slots: Sequence[int]
    deadline: float
    arrived: float
    owner: "Connection"
    taken: int = 0  # images that have been put into a batch
    done: int = 0  # images of those that have been run
    started: float | None = None
    compute_seconds: float = 0.0
    batch: int = 0  # images in its largest batch
    cancelled: bool = False
    failed: bool = False

    @property
    def waiting(self) -> int:
        return 0 if self.cancelled else len(self.slots) - self.taken

    @property
    def ended(self) -> bool:
        return self.done == self.taken and not self.waiting


@dataclass(frozen=True, slots=True)
class Part:
    """Images `start` to `stop` of a request."""

    request: Request
    start: int
    stop: int

    @property
    def slots(self) -> Sequence[int]:
        return self.request.slots[self.start : self.stop]


@dataclass(frozen=True, slots=True)
class Batch:
    """What to run now, and requests that have waited past their deadline, of which nothing is run."""

    parts: list[Part] = field(default_factory=list)
    expired: list[Request] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return sum(part.stop - part.start for part in self.parts)


class Batcher:
    """A queue of requests that gives batches of images; its methods may be called from any thread."""

    def __init__(
        self,
        sizes: BatchSizes,
        *,
        max_delay: float,
        fill_delay: float = 0,
        coming: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """A batch waits `max_delay` seconds to be filled, or `fill_delay` where what is `coming` fills it."""
        self._sizes, self._max_delay, self._clock = sizes, max_delay, clock
        self._fill_delay, self._coming = fill_delay, coming
        self._queue: deque[Request] = deque()
        self._rows = 0
        self._closed = False
        self._lock = threading.Lock()

    @property
    def rows(self) -> int:
        """Images that wait."""
        return self._rows

    @property
    def requests(self) -> int:
        """Requests with images that wait."""
        return len(self._queue)

    def put(self, request: Request) -> None:
        with self._lock:
            self._queue.append(request)
            self._rows += request.waiting

    def cancel(self, request: Request) -> bool:
        """Take what waits of a request out of the queue; True if it has ended by that."""
        with self._lock:
            if request.waiting:
                self._queue.remove(request)
                self._rows -= request.waiting
            request.cancelled = True
            return request.ended

    def take(self) -> Batch | float | None:
        """The next batch if one is due, else the seconds until one is; None while nothing waits."""
        with self._lock:
            now = self._clock()
            if expired := self._pop_expired(now):
                return Batch(expired=expired)
            if not self._queue:
                return None
            if self._rows >= self._sizes.largest or self._closed:
                return self._form()
            wait = self._queue[0].arrived + self._delay() - now
            return wait if wait > 0 else self._form()

    def finish(self, batch: Batch) -> list[Request]:
        """Count a batch as run; the requests that have ended with it."""
        with self._lock:
            for part in batch.parts:
                part.request.done += part.stop - part.start
            requests = dict.fromkeys(part.request for part in batch.parts)
            return [request for request in requests if request.ended]

    def close(self) -> None:
        """From now on no batch waits to be filled."""
        self._closed = True

    def _delay(self) -> float:
        if self._fill_delay > self._max_delay and self._rows + self._coming() >= self._sizes.largest:
            return self._fill_delay
        return self._max_delay

    def _pop_expired(self, now: float) -> list[Request]:
        """Requests at the head of the queue that nothing has been run of, past their deadline."""
        expired: list[Request] = []
        while self._queue and self._queue[0].deadline < now and self._queue[0].taken == 0:
            expired.append(self._queue.popleft())
            self._rows -= expired[-1].waiting
        return expired

    def _form(self) -> Batch:
        room = self._sizes.fit(self._rows)
        self._rows -= room
        parts: list[Part] = []
        while room:
            request = self._queue[0]
            count = min(room, request.waiting)
            parts.append(Part(request, request.taken, request.taken + count))
            request.taken += count
            room -= count
            if not request.waiting:
                self._queue.popleft()
        return Batch(parts=parts)
