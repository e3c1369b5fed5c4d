"""Which worker lets a client in: one of those with the fewest connections.

All wait at one socket, and mostly the same one is the quickest: of 16 connections at once, four workers
had 11, 4, 1 and none. So each tells the others how many it has, and is slow to take more than they.
"""

import asyncio
import logging
import mmap
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Any, Self

import numpy as np

YIELD_SECONDS = 0.002  # for one with fewer connections to take the client
SHORTAGE_SECONDS = 1.0  # after an accept that failed, mostly for lack of file descriptors
_GONE = np.iinfo(np.int32).max
logger = logging.getLogger("lct_deploy.server")


class Loads:
    """How many connections each worker has, in memory that all share."""

    def __init__(self, descriptor: int) -> None:
        """Owns `descriptor` from now on."""
        self.descriptor = descriptor
        self._counts = np.frombuffer(mmap.mmap(descriptor, os.fstat(descriptor).st_size), np.int32)

    @classmethod
    def create(cls, workers: int) -> Self:
        descriptor = os.memfd_create("lct-loads")
        os.ftruncate(descriptor, workers * 4)
        loads = cls(descriptor)
        for number in range(1, workers + 1):
            loads.leave(number)
        return loads

    def tell(self, number: int, connections: int) -> None:
        """What worker `number` has now."""
        self._counts[number - 1] = connections

    def leave(self, number: int) -> None:
        """Worker `number` lets nobody in: nobody has to wait for it."""
        self._counts[number - 1] = _GONE

    def fewest(self) -> int:
        return int(self._counts.min())


class Acceptor:
    """Lets clients in for one worker."""

    def __init__(
        self,
        listener: socket.socket,
        loads: Loads,
        number: int,
        *,
        serve: Callable[[socket.socket], Coroutine[Any, Any, None]],
        connections: Callable[[], int],
    ) -> None:
        """`serve` makes a connection of a socket; `connections` says how many there are."""
        self._listener, self._loads, self._number = listener, loads, number
        self._serve, self._connections = serve, connections
        self._opening: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """From now on, in the running event loop."""
        self.tell()
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._consider)

    def stop(self) -> None:
        """Let nobody in any more."""
        self._loads.leave(self._number)
        asyncio.get_running_loop().remove_reader(self._listener.fileno())
        if self._timer is not None:
            self._timer.cancel()

    def tell(self) -> int:
        """Tell the others how many connections there are here."""
        count = self._connections() + len(self._opening)
        self._loads.tell(self._number, count)
        return count

    def _consider(self) -> None:
        """Somebody wants to be let in."""
        if self.tell() > self._loads.fewest():
            self._pause(YIELD_SECONDS)
        else:
            self._take()

    def _pause(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener.fileno())
        self._timer = loop.call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        """Take one all the same, if the others have left any."""
        self._timer = None
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._consider)
        self._take()

    def _take(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except ConnectionError:  # the client has gone again
            return
        except OSError as error:
            logger.error("no connection can be accepted: %s", error)
            self._pause(SHORTAGE_SECONDS)
            return
        self._opening.add(task := asyncio.get_running_loop().create_task(self._serve(connection)))
        task.add_done_callback(self._opening.discard)
        self.tell()
