"""One HTTP/1.1 connection that costs its machine little: prepared bytes out, a parser in C for what comes in.

The benchmarks' client runs on the cores of the server that it measures. uvloop and httptools are what
the server itself runs on; `benchmarks.serving.clients` compares the cost with that of the usual clients.
"""

import asyncio
from collections.abc import Callable
from enum import IntEnum
from typing import cast

import httptools


class Outcome(IntEnum):
    """What became of a request that got no answer; an answer's outcome is its status."""

    REFUSED = -1  # no connection: the request was not sent
    LOST = -2  # closed before the answer was there, though the request had been sent
    LOST_IDLE = (
        -3
    )  # the same on a connection used before, with no byte of an answer: it may have been closing
    TIMED_OUT = -4


LOST = (Outcome.LOST, Outcome.LOST_IDLE)

Answered = Callable[[int], None]


class Connection(asyncio.Protocol):
    """Sends a request at a time; `answered` is called once for each, with its outcome."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._answered: Answered | None = None
        self._used = False
        self._begun = False

    @property
    def usable(self) -> bool:
        """Open, and without a request."""
        return self._transport is not None and self._answered is None

    def send(self, request: bytes, answered: Answered) -> None:
        """`request` is the whole of it, head and body; only on a usable connection."""
        assert self._transport is not None  # noqa: S101 - usable
        self._answered, self._begun = answered, False
        self._transport.write(request)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._begun = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    def on_message_complete(self) -> None:
        """The parser's: an answer is whole."""
        status, keep = self._parser.get_status_code(), self._parser.should_keep_alive()
        self._used = True
        if not keep and self._transport is not None:
            self._transport.abort()
            self._transport = None
        self._finish(status)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._finish(Outcome.LOST_IDLE if self._used and not self._begun else Outcome.LOST)

    def _finish(self, outcome: int) -> None:
        answered, self._answered = self._answered, None
        if answered is not None:
            answered(outcome)


async def connect(host: str, port: int) -> Connection | None:
    """None where it is refused."""
    try:
        _, connection = await asyncio.get_running_loop().create_connection(Connection, host, port)
    except OSError:
        return None
    return connection
