"""One HTTP process, as an engine sees it: the requests that it has sent, and the way to answer them."""

import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence

from server.engine.batcher import Request
from server.engine.messages import Done, pack_done
from server.engine.slots import Slots


class Connection:
    """Answers never wait for their reader: a process that has stopped must not stop the engine."""

    def __init__(
        self, link: socket.socket, slots: Slots, *, on_backlog: Callable[["Connection"], None]
    ) -> None:
        link.setblocking(False)
        self.link, self.slots = link, slots
        self.requests: dict[int, Request] = {}  # only the engine's own thread adds and looks up
        self._unsent: deque[bytes] = deque()
        self._on_backlog = on_backlog
        self._lock = threading.Lock()

    def answer(self, done: Sequence[Done]) -> None:
        """Say that requests have ended; from any thread."""
        for ended in done:
            self.requests.pop(ended.request, None)
        self.send(pack_done(done))

    def send(self, packet: bytes) -> None:
        with self._lock:
            self._unsent.append(packet)
            blocked = not self._flush()
        if blocked:
            self._on_backlog(self)

    def flush(self) -> bool:
        """Send what could not be sent before; False if some is still left."""
        with self._lock:
            return self._flush()

    def close(self) -> None:
        self.link.close()
        self.slots.close()

    def _flush(self) -> bool:
        while self._unsent:
            try:
                self.link.send(self._unsent[0])
            except BlockingIOError:
                return False
            except OSError:  # its reader has gone; the engine's loop finds that out by itself
                self._unsent.clear()
                return True
            self._unsent.popleft()
        return True
