"""Reading bodies over real sockets: sizes, slow clients, clients that go."""

import socket
import threading
import time
from collections.abc import Generator, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI, Request
from starlette.types import ASGIApp

from server.bodies import Bodies
from server.errors import add_error_handlers
from server.observability.metrics import Metrics
from server.observability.middleware import ObservabilityMiddleware
from server.problems import ClientGoneError
from server.settings import ServerSettings

LIMIT = 100_000
SECONDS = 1.0
CAPACITY = 250_000


@dataclass
class Reader:
    """An application that answers with the length of the body."""

    bodies: Bodies
    gone: list[ClientGoneError] = field(default_factory=list)

    def app(self) -> ASGIApp:
        app = FastAPI()
        add_error_handlers(app)

        @app.post("/")
        async def length(request: Request) -> int:
            try:
                async with self.bodies.read(request) as body:
                    return len(body)
            except ClientGoneError as error:
                self.gone.append(error)
                raise

        return ObservabilityMiddleware(app, Metrics())


@pytest.fixture(scope="module")
def reader() -> Reader:
    settings = ServerSettings(
        bundles=(Path("bundle"),),
        max_body_bytes=LIMIT,
        body_seconds=SECONDS,
        max_buffered_bytes=CAPACITY,
    )
    return Reader(Bodies(settings))


@pytest.fixture(scope="module")
def address(reader: Reader) -> Generator[tuple[str, int]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(reader.app(), log_level="warning", http="httptools"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield listener.getsockname()
        server.should_exit = True
        thread.join()


@pytest.fixture
def connection(address: tuple[str, int]) -> Generator[socket.socket]:
    with socket.create_connection(address, timeout=10) as connected:
        yield connected


def send(connection: socket.socket, *chunks: bytes, header: str = "") -> None:
    """A request whose body is `chunks`: chunked, unless a header tells its length."""
    header = header or "Transfer-Encoding: chunked"
    connection.sendall(f"POST / HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n".encode())
    for chunk in chunks:
        framed = f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n" if "chunked" in header else chunk
        connection.sendall(framed)


def receive(connection: socket.socket) -> tuple[int, str, bytes]:
    """Status, header lines and body of an answer that tells its length."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _some(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode().lower()
    length = int(lines.partition("content-length: ")[2].split("\r\n")[0])
    while len(body) < length:
        body += _some(connection)
    return int(lines.split()[1]), lines, body


def _some(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    assert data, "the server has closed the connection"
    return data


def length(size: int) -> str:
    return f"Content-Length: {size}"


@pytest.mark.parametrize("size", [0, 1, 70_000, LIMIT])
def test_bodies_up_to_the_limit(connection: socket.socket, size: int) -> None:
    send(connection, bytes(size), header=length(size))
    assert receive(connection)[::2] == (200, str(size).encode())


@pytest.mark.parametrize("chunks", [[], [b"a"], [b"a" * 30_000, b"b" * 70_000]])
def test_bodies_in_chunks(connection: socket.socket, chunks: Iterable[bytes]) -> None:
    send(connection, *chunks, b"")
    assert receive(connection)[::2] == (200, str(sum(map(len, chunks))).encode())


def test_a_body_that_arrives_slowly(connection: socket.socket) -> None:
    send(connection, b"abc", header=length(6))
    time.sleep(SECONDS / 3)
    connection.sendall(b"def")
    assert receive(connection)[::2] == (200, b"6")


@pytest.mark.parametrize("size", [LIMIT + 1, 10**15, int("9" * 18)])
def test_a_length_over_the_limit_is_refused_before_the_body(connection: socket.socket, size: int) -> None:
    send(connection, header=length(size))
    status, _, body = receive(connection)
    assert status == 413
    assert b"over the limit of 100000 bytes" in body


def test_a_refused_client_may_go_on_sending_and_read_its_answer_then(connection: socket.socket) -> None:
    send(connection, bytes(30 << 20), header=length(30 << 20))
    assert receive(connection)[0] == 413
    send(connection, b"abc", header=length(3))  # the connection still works
    assert receive(connection)[::2] == (200, b"3")


def test_chunks_over_the_limit_are_refused_as_they_come(connection: socket.socket) -> None:
    send(connection, bytes(60_000), bytes(60_000))  # and no end
    assert receive(connection)[0] == 413


@pytest.mark.parametrize("sent", [b"", b"ab"])
def test_a_body_that_never_ends_is_408(connection: socket.socket, sent: bytes) -> None:
    started = time.monotonic()
    send(connection, sent, header=length(3))
    status, head, body = receive(connection)
    assert (status, "connection: close" in head) == (408, True)
    assert b"not complete after 1 s" in body
    assert SECONDS <= time.monotonic() - started < SECONDS + 2
    assert connection.recv(1) == b""


def test_a_trickle_does_not_buy_more_time(connection: socket.socket) -> None:
    send(connection, header=length(LIMIT))
    started = time.monotonic()
    connection.settimeout(0.1)
    while True:
        try:
            connection.sendall(b"x")
            answer = connection.recv(65536)
            break
        except TimeoutError:
            assert time.monotonic() - started < SECONDS + 2
    assert b" 408 " in answer


def test_a_client_that_goes_is_noticed(reader: Reader, connection: socket.socket) -> None:
    before = len(reader.gone)
    send(connection, b"ab", header=length(10))
    connection.close()
    until = time.monotonic() + 5
    while len(reader.gone) == before and time.monotonic() < until:
        time.sleep(0.01)
    assert len(reader.gone) == before + 1


def test_all_bodies_together_stay_within_the_memory_for_them(
    reader: Reader, address: tuple[str, int]
) -> None:
    """Three clients that hold back the last byte: a fourth is told to come back, and then let in."""
    with ExitStack() as opened:
        clients = [opened.enter_context(socket.create_connection(address, timeout=10)) for _ in range(3)]
        for client in clients:
            send(client, bytes(CAPACITY // 3 - 1), header=length(CAPACITY // 3))
        late = opened.enter_context(socket.create_connection(address, timeout=10))
        until = time.monotonic() + 5
        while reader.bodies.held < 3 * (CAPACITY // 3 - 1) and time.monotonic() < until:
            time.sleep(0.01)
        send(late, bytes(1000), header=length(1000))
        status, head, _ = receive(late)
        assert (status, "retry-after: 1" in head) == (503, True)
        for client in clients:
            client.sendall(b"x")
            assert receive(client)[0] == 200
        send(late, bytes(1000), header=length(1000))
        assert receive(late)[0] == 200
    until = time.monotonic() + 5
    while reader.bodies.held and time.monotonic() < until:
        time.sleep(0.01)
    assert reader.bodies.held == 0
