"""The bodies of requests, read under limits on their size, their time, and the memory of all together."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from starlette.requests import Request

from server.problems import ClientGoneError, Problem
from server.refusals import ServerBusyError
from server.settings import ServerSettings

_DIGITS = 18  # of a size that any limit could allow; Python does not read very long numbers
_RETRY_SECONDS = 1


class Bodies:
    """Reads bodies, and knows how many bytes of them are in memory."""

    def __init__(self, settings: ServerSettings) -> None:
        self._limit, self._seconds = settings.max_body_bytes, settings.body_seconds
        self._capacity = settings.max_buffered_bytes
        self._held = 0

    @property
    def held(self) -> int:
        """Bytes of bodies that have come, of requests that are not answered yet."""
        return self._held

    @asynccontextmanager
    async def read(self, request: Request, limit: int | None = None) -> AsyncGenerator[bytes]:
        """All of the body, for a request whose body nobody has read yet; its bytes count until the end.

        Raises a Problem: 413 as soon as it is known to be over `limit` bytes (by default that of the
        settings), 408 where it is not complete in time, 503 where all bodies together are too large.
        Raises ClientGoneError where the client goes before that. What a refused client still sends is
        dropped as it comes, so that it gets to read the answer.
        """
        limit = min(limit or self._limit, self._limit)
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and (len(declared) > _DIGITS or int(declared) > limit):
            raise _too_large(limit)
        chunks: list[bytes] = []
        try:
            await self._read_in_time(request, chunks, limit)
            yield chunks[0] if len(chunks) == 1 else b"".join(chunks)
        finally:
            self._held -= sum(map(len, chunks))

    async def _read_in_time(self, request: Request, chunks: list[bytes], limit: int) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                await self._read_chunks(request, chunks, limit)
        except TimeoutError as error:
            # The rest may never come: this connection is of no use to anybody.
            detail = f"the body was not complete after {self._seconds:g} s"
            raise Problem(408, detail, {"Connection": "close"}) from error

    async def _read_chunks(self, request: Request, chunks: list[bytes], limit: int) -> None:
        size, more = 0, True
        while more:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            chunk: bytes = message.get("body", b"")
            size += len(chunk)
            self._held += len(chunk)
            chunks.append(chunk)
            if size > limit:
                raise _too_large(limit)
            if self._held > self._capacity:
                raise ServerBusyError(f"{self._held} bytes of requests are in memory", _RETRY_SECONDS)
            more = message.get("more_body", False)


def _too_large(limit: int) -> Problem:
    return Problem(413, f"the body is over the limit of {limit} bytes")
