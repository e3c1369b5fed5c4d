"""Connections to the real server on which requests come late, endlessly, or not at all."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Generator
from contextlib import closing, contextmanager
from functools import partial
from http.client import HTTPResponse
from pathlib import Path
from typing import Any, cast

import httpx
import psutil
import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from server.http_connection import HEAD_BYTES, HttpConnection
from tests.serving import Server

SECONDS = 1
SLOW = 2.0
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(scope="module")
def impatient(demo_bundle: Path) -> Generator[Server]:
    with Server(demo_bundle, body_seconds=SECONDS, keep_alive_seconds=SECONDS) as server:
        yield server


@pytest.fixture
def connection(impatient: Server) -> Generator[socket.socket]:
    with closing(connect(impatient)) as connected:
        yield connected


def connect(server: Server) -> socket.socket:
    url = httpx.URL(server.url)
    return socket.create_connection((url.host, url.port or 80), timeout=10)


def read_to_end(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    parts: list[bytes] = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def problem(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head
    assert b"connection: close" in head
    details = json.loads(body)
    assert int(head.split()[1]) == details["status"]
    return details["status"], details["detail"]


def test_headers_without_end_are_refused_and_not_kept(impatient: Server, connection: socket.socket) -> None:
    before = psutil.Process(impatient.process.pid).memory_info().rss
    connection.sendall(LIVE)
    sent = 0
    try:
        for index in range(2000):
            sent += connection.send(b"x-%d: %s\r\n" % (index, b"y" * 65000))
    except (BrokenPipeError, ConnectionResetError):
        pass
    assert sent < 64 << 20
    assert psutil.Process(impatient.process.pid).memory_info().rss - before < 16 << 20


@pytest.mark.parametrize("line", [b"x: y\r\n", b"y" * 100], ids=["many", "one without end"])
def test_long_headers_are_told_apart(connection: socket.socket, line: bytes) -> None:
    connection.sendall(LIVE + b"x: ")
    size = 0
    while size <= HEAD_BYTES:
        time.sleep(0.001)  # packets of their own
        size += connection.send(line * (6000 // len(line)))
    status, detail = problem(read_to_end(connection))
    assert status == 431
    assert str(HEAD_BYTES) in detail


def test_a_head_that_is_too_long_at_once_is_refused_at_once(connection: socket.socket) -> None:
    """Not when it is late: what comes with its first bytes is counted too."""
    connection.sendall(LIVE + b"x: " + b"y" * HEAD_BYTES)
    assert problem(read_to_end(connection))[0] == 431


@pytest.mark.parametrize("sent", [b"GET", LIVE], ids=["a method", "half the headers"])
def test_a_head_that_is_late_is_not_waited_for(connection: socket.socket, sent: bytes) -> None:
    connection.sendall(sent)
    assert problem(read_to_end(connection)) == (408, f"the headers were not complete after {SECONDS} s")


def test_headers_that_drip_do_not_gain_time(connection: socket.socket) -> None:
    connection.sendall(LIVE)
    begin = time.monotonic()
    connection.settimeout(0.2)
    while True:
        connection.send(b"x: y\r\n")
        try:
            answer = connection.recv(65536)
            break
        except TimeoutError:
            assert time.monotonic() - begin < 10 * SECONDS
    assert problem(answer)[0] == 408


@pytest.mark.parametrize("sent", [b"", LIVE + b"\r\n"], ids=["nothing", "a request"])
def test_a_connection_on_which_nothing_comes_is_closed(connection: socket.socket, sent: bytes) -> None:
    connection.sendall(sent)
    answer = read_to_end(connection)
    assert answer.startswith(b"HTTP/1.1 200") if sent else answer == b""


def test_what_is_no_http_gets_a_problem(connection: socket.socket) -> None:
    connection.sendall(b"\x16\x03\x01 client hello\r\n\r\n")
    assert problem(read_to_end(connection)) == (400, "this is not an HTTP/1.1 request")


def test_what_no_application_sees_is_counted_and_logged(demo_bundle: Path) -> None:
    with Server(demo_bundle, body_seconds=SECONDS) as server:
        for sent in (LIVE, b"\0\0"):
            with closing(connect(server)) as connected:
                connected.sendall(sent)
                read_to_end(connected)
        metrics = httpx.get(f"{server.url}/metrics").text
        lines = [line for line in server.log() if line.get("route") == "unmatched"]
    for status in (408, 400):
        assert (
            f'lct_http_responses_total{{method="other",route="unmatched",status="{status}"}} 1.0' in metrics
        )
    assert 'lct_requests_total{model="",outcome="bad_request",version=""} 2.0' in metrics
    assert [(line["status"], line["outcome"], line["client"]) for line in lines] == [
        (408, "bad_request", "127.0.0.1"),
        (400, "bad_request", "127.0.0.1"),
    ]
    assert lines[0]["message"] == f"408: the headers were not complete after {SECONDS} s"


def test_a_body_that_comes_with_the_last_header_is_no_header(connection: socket.socket) -> None:
    connection.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n")
    time.sleep(0.1)
    body = b"y" * 3 * HEAD_BYTES
    connection.sendall(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
    answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 4")
    assert b"431" not in answer.split(b"\r\n")[0]


def test_a_late_head_comes_after_the_answer_before_it(connection: socket.socket) -> None:
    connection.sendall(LIVE + b"\r\n" + LIVE)
    first, late, _ = read_to_end(connection).partition(b"HTTP/1.1 408")
    assert first.startswith(b"HTTP/1.1 200")
    assert late


@pytest.mark.parametrize("after", [LIVE, b"\0\0", LIVE + b"x" * 3 * HEAD_BYTES], ids=["late", "bad", "long"])
def test_what_is_wrong_after_a_request_does_not_cost_its_answer(after: bytes) -> None:
    """It has begun, and is answered; then the connection is closed."""
    begun = threading.Event()
    with slow_server(begun) as address, closing(socket.create_connection(address, timeout=10)) as connected:
        connected.sendall(LIVE + b"\r\n")
        assert begun.wait(10)
        connected.sendall(after)
        answer = read_to_end(connected)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"slow")
    assert answer.count(b"HTTP/1.1") == 1


@contextmanager
def slow_server(begun: threading.Event) -> Generator[tuple[str, int]]:
    """Sets `begun` with a request and answers it after SLOW seconds; waits a quarter of that for a head."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        begun.set()
        await asyncio.sleep(SLOW)
        await PlainTextResponse("slow")(scope, receive, send)

    def refused(*_: object) -> None:
        """Nobody counts here."""

    protocol = cast("Any", partial(HttpConnection, head_seconds=SLOW / 4, refused=refused))
    config = uvicorn.Config(app, http=protocol, lifespan="off", log_level="warning")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield listener.getsockname()
        server.should_exit = True
        thread.join()


def test_a_connection_outlives_a_pause_of_its_client(demo_bundle: Path) -> None:
    """5 s is what servers of this kind close a connection after: a request sent just then is lost."""
    with Server(demo_bundle) as server, closing(connect(server)) as connected:
        for pause in (6, 0):
            connected.sendall(LIVE + b"\r\n")
            response = HTTPResponse(connected)
            response.begin()
            assert (response.status, response.read()) == (200, b'{"live":true}')
            time.sleep(pause)
