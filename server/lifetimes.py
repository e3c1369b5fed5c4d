"""How long a request may live: until its deadline, or until its client has gone."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

from server.problems import ClientGoneError, Problem

T = TypeVar("T")
TIMEOUT_HEADER = "X-Request-Timeout-Ms"
_SOON = 0.05  # seconds: what is answered by then costs less than to watch for its client's going


def deadline_of(request: Request, default_seconds: float) -> float:
    """The `time.monotonic()` by which to answer; a client may set less than the server's default.

    Raises a Problem of 400 for a header that is not a number of milliseconds.
    """
    text = request.headers.get(TIMEOUT_HEADER)
    seconds = default_seconds
    if text is not None:
        if not (text.isascii() and text.isdigit() and len(text) <= 9):
            raise Problem(400, f"{TIMEOUT_HEADER} has to be a whole number of milliseconds")
        seconds = min(seconds, int(text) / 1000)
    return time.monotonic() + seconds


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """`work`, cancelled as soon as the client goes, if it takes its time; then raises ClientGoneError.

    The request's body has to have been read.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None  # noqa: S101 - a request is always one's
    watchers: list[asyncio.Task[None]] = []

    def watch() -> None:
        watchers.append(loop.create_task(_cancel_on_disconnect(request, task)))

    timer = loop.call_later(_SOON, watch)
    try:
        return await work
    except asyncio.CancelledError:
        if any(watcher.done() for watcher in watchers) and task.uncancel() == 0:
            raise ClientGoneError from None
        raise
    finally:
        timer.cancel()
        for watcher in watchers:
            watcher.cancel()


async def _cancel_on_disconnect(request: Request, task: "asyncio.Task[Any]") -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    task.cancel()
