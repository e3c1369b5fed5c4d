"""The body of a request, read under a limit on its size and on the time that it takes."""

import asyncio

from fastapi import Request

from server.problems import Problem

_DIGITS = 18  # of a size that any limit could allow; Python does not read very long numbers


async def read_body(request: Request, limit: int, *, seconds: float = 30) -> bytes:
    """All of the body, for a request whose body nobody has read yet.

    Raises a Problem: 413 as soon as it is known to be over `limit` bytes, 408 where it is not complete after
    `seconds`, 400 where the client goes before that. What a refused client still sends is dropped as it
    comes, so that it gets to read the answer.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and (len(declared) > _DIGITS or int(declared) > limit):
        raise _too_large(limit)
    try:
        async with asyncio.timeout(seconds):
            return await _read_chunks(request, limit)
    except TimeoutError as error:
        # The rest may never come: this connection is of no use to anybody.
        raise Problem(
            408, f"the body was not complete after {seconds:g} s", {"Connection": "close"}
        ) from error


async def _read_chunks(request: Request, limit: int) -> bytes:
    chunks: list[bytes] = []
    size, more = 0, True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise Problem(400, "the connection was closed before the body was complete")
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(chunk)
        more = message.get("more_body", False)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_large(limit: int) -> Problem:
    return Problem(413, f"the body is over the limit of {limit} bytes")
