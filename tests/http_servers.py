"""Tiny HTTP servers that misbehave on purpose, each in a thread of its own."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, suppress

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n"
LAST = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"
HALF = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{"

# What is sent to the request of this number, on all connections and on its own; None closes instead.
Answer = Callable[[int, int], Awaitable[bytes | None]]


@contextmanager
def http_server(answer: Answer) -> Generator[str]:
    """The URL of a server that answers so."""
    started = threading.Event()
    loop = asyncio.new_event_loop()
    urls: list[str] = []

    async def serve() -> None:
        numbers = iter(range(1 << 30))

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
                for own in range(1 << 30):
                    await _read_request(reader)
                    content = await answer(next(numbers), own)
                    if content is None:
                        break
                    writer.write(content)
                    if content in (LAST, HALF):
                        break
            writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        urls.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x")
        started.set()
        async with server:
            with suppress(asyncio.CancelledError):
                await server.serve_forever()

    def run() -> None:
        asyncio.set_event_loop(loop)
        task = loop.create_task(serve())
        stop.append(lambda: loop.call_soon_threadsafe(task.cancel))
        loop.run_until_complete(task)
        for left in (tasks := asyncio.all_tasks(loop)):
            left.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.close()

    stop: list[Callable[[], object]] = []
    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(10)
    try:
        yield urls[0]
    finally:
        stop[0]()
        thread.join()


async def _read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    (length,) = [
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length")
    ]
    return await reader.readexactly(length)


def always(content: bytes | None) -> Answer:
    async def answer(number: int, own: int) -> bytes | None:
        return content

    return answer


def stalls(at: int, seconds: float) -> Answer:
    """Answers at once, but for one moment in which it does nothing at all."""

    async def answer(number: int, own: int) -> bytes | None:
        if number == at:
            time.sleep(seconds)
        return OK

    return answer
