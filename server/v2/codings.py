"""Content codings: bodies that come compressed, and answers that may go so."""

import asyncio
import zlib
from concurrent.futures import Executor
from typing import Literal

from server.problems import Problem
from server.v2.errors import bad
from server.v2.fields import shown

Coding = Literal["gzip", "deflate"]
_WINDOW: dict[Coding, int] = {"gzip": 31, "deflate": 15}  # zlib's names for the two formats
_BARE = -15  # deflate without zlib's header, which some clients send
_LEVEL = 1  # logits hardly get smaller with more effort
_LARGE = 1 << 16  # bytes whose compression would keep other requests waiting


async def decompressed(body: bytes, coding: str, limit: int, executor: Executor) -> bytes:
    """The body as it was before the client applied `coding`, of at most `limit` bytes.

    Raises a Problem: 413 for a body that would become larger, 415 for another coding, 400 for damage.
    """
    name = coding.strip().lower().removeprefix("x-")
    if name in ("", "identity"):
        return body
    if name != "gzip" and name != "deflate":
        raise Problem(
            415,
            f"Content-Encoding {shown(coding)} is not understood; send gzip or deflate",
            {"Accept-Encoding": "gzip, deflate"},
        )
    return await asyncio.get_running_loop().run_in_executor(executor, _inflate, body, name, limit)


async def compressed(body: bytes, coding: Coding, executor: Executor) -> bytes:
    if len(body) < _LARGE:
        return _deflate(body, coding)
    return await asyncio.get_running_loop().run_in_executor(executor, _deflate, body, coding)


def accepted_coding(accept: str) -> Coding | None:
    """What an Accept-Encoding asks for by name: the one it likes best, None where it likes neither."""
    weights = {"gzip": 0.0, "deflate": 0.0, "identity": 0.0}
    for item in accept.split(","):
        name, _, parameter = item.partition(";")
        weights[name.strip().lower()] = _weight(parameter)
    best: Coding = "gzip" if weights["gzip"] >= weights["deflate"] else "deflate"
    return best if weights[best] > 0 and weights[best] >= weights["identity"] else None


def _weight(parameter: str) -> float:
    """The q of an item; what is not one is no wish for it either."""
    name, _, value = parameter.partition("=")
    if not name.strip():
        return 1.0
    try:
        return float(value) if name.strip().lower() == "q" else 0.0
    except ValueError:
        return 0.0


def _inflate(body: bytes, coding: Coding, limit: int) -> bytes:
    try:
        return _inflate_as(_WINDOW[coding], body, coding, limit)
    except zlib.error as error:
        if coding == "deflate":
            try:
                return _inflate_as(_BARE, body, coding, limit)
            except zlib.error:
                pass
        raise bad(f"the body is not {coding}: {error}") from error


def _inflate_as(window: int, body: bytes, coding: Coding, limit: int) -> bytes:
    stream = zlib.decompressobj(window)
    data = stream.decompress(body, limit + 1)
    if len(data) > limit:
        raise Problem(413, f"the body is over the limit of {limit} bytes once decompressed")
    if not stream.eof:
        raise bad(f"the body ends before its {coding} stream does")
    if stream.unused_data:
        raise bad(f"{len(stream.unused_data)} bytes follow the {coding} stream")
    return data


def _deflate(body: bytes, coding: Coding) -> bytes:
    stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW[coding])
    return stream.compress(body) + stream.flush()
