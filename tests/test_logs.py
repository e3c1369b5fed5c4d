"""The server's log: lines that a machine can read, and that belong to a request."""

import asyncio
import json
import logging
import os
import pty
import re
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI, Request, Response

from server.errors import add_error_handlers, error_response
from server.observability.logs import configure_logging
from server.observability.metrics import Metrics
from server.observability.middleware import ObservabilityMiddleware
from server.observability.record import RequestRecord, current_record
from server.observability.trace_context import TraceContext, identify, new_request_id
from server.shortcut import Shortcut
from tests.serving import Server, classify, encoded, upload
from tests.test_engine import wait_for

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
KEY = "a-key-that-must-not-be-logged"


@pytest.fixture(scope="module")
def server(demo_bundle: Path) -> Generator[Server]:
    with Server(demo_bundle, log_format="json", infer_keys=KEY) as running:
        yield running


@pytest.fixture
def http(server: Server) -> Generator[httpx.Client]:
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=server.url, timeout=60, headers=headers) as opened:
        yield opened


def line_of(server: Server, answer: httpx.Response) -> dict[str, Any]:
    """The line of the log that belongs to an answer."""
    request_id = answer.headers["x-request-id"]

    def lines() -> list[dict[str, Any]]:
        return [line for line in server.log() if line.get("request_id") == request_id]

    wait_for(lambda: bool(lines()), 5)  # it is written after the answer
    (line,) = lines()
    return line


# What is in it


def test_each_request_is_one_line(server: Server, http: httpx.Client) -> None:
    answer = upload(http, encoded(0), encoded(1), b"no image")
    line = line_of(server, answer)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("ts"))
    assert line.pop("duration_ms") >= sum(line.pop("stages").values()) > 0
    assert re.fullmatch(r"POST /v1/classify 200 in [\d.]+ ms", line.pop("message"))
    assert line == {
        "level": "info", "logger": "lct_deploy.server.access",
        "request_id": answer.headers["x-request-id"],
        "method": "POST", "route": "/v1/classify", "status": 200, "outcome": "ok", "client": "127.0.0.1",
        "model": "demo", "version": "1", "images": 3, "batch": 2,
    }  # fmt: skip


def test_what_it_says_from_start_to_end_is_json(demo_bundle: Path) -> None:
    server = Server(demo_bundle)
    with httpx.Client(base_url=server.url, timeout=60) as http:
        classify(http, encoded())
        http.get("/nowhere")
    code, _ = server.stop()
    lines = server.log()
    assert code == 0
    assert all({"ts", "level", "logger", "message"} <= line.keys() for line in lines)
    assert [line["ts"] for line in lines] == sorted(line["ts"] for line in lines)
    assert {line["logger"] for line in lines} >= {"lct_deploy.server", "uvicorn.error"}
    assert "color_message" not in {key for line in lines for key in line}


def test_nothing_that_a_client_keeps_secret_is_in_it(server: Server, http: httpx.Client) -> None:
    http.post("/v1/classify", params={"model": "demo", "token": "s3cret"}, content=encoded())
    http.get("/nowhere", params={"token": "s3cret"})
    httpx.post(f"{server.url}/v1/classify", headers={"Authorization": "Bearer wrong-but-secret-too"})
    messages = server.messages()
    assert "/nowhere" in messages
    for secret in ("s3cret", KEY, "wrong-but-secret"):
        assert secret not in messages


def test_probes_are_seen_only_by_those_who_debug(demo_bundle: Path) -> None:
    for level, seen in (("info", False), ("debug", True)):
        with Server(demo_bundle, log_level=level) as server:
            for path in ("/v2/health/ready", "/v2/health/live", "/metrics", "/docs"):
                httpx.get(server.url + path)
            assert ("/v2/health/ready" in server.messages()) == seen


def test_failures_are_louder_than_answers(server: Server, demo_bundle: Path) -> None:
    with Server(demo_bundle) as hurried, httpx.Client(base_url=hurried.url, timeout=60) as http:
        late = http.post("/v1/classify", content=encoded(), headers={
            "Content-Type": "image/png", "X-Request-Timeout-Ms": "0"
        })  # fmt: skip
        assert late.status_code == 504
        line = line_of(hurried, late)
        assert (line["level"], line["outcome"]) == ("warning", "expired")


# Which request


def test_a_clients_id_comes_back_and_is_in_the_log(server: Server, http: httpx.Client) -> None:
    for sent in ("abc", "A.b_c-9", "x" * 128):
        answer = http.get("/nowhere", headers={"X-Request-Id": sent})
        assert answer.headers["x-request-id"] == sent
        assert line_of(server, answer)["path"] == "/nowhere"


@pytest.mark.parametrize("sent", [b"", b"x" * 129, b"a b", b"a;b", b'"', "ä".encode(), b"a\tb", b"%0a"])
def test_an_id_that_could_do_harm_is_replaced(server: Server, http: httpx.Client, sent: bytes) -> None:
    answer = http.get("/nowhere", headers=[(b"X-Request-Id", sent)])
    assert UUID(answer.headers["x-request-id"]).version == 7
    assert line_of(server, answer)["status"] == 404


def test_every_answer_has_an_id(server: Server, http: httpx.Client) -> None:
    answers = [
        classify(http, encoded()),
        classify(http, b"no image"),
        classify(http, encoded(), model="none"),
        http.get("/v1/classify"),
        http.get("/nowhere"),
        http.get("/v2/health/ready"),
        http.get("/metrics"),
        http.get("/docs"),
        httpx.post(f"{server.url}/v1/classify"),  # without a key
    ]
    assert [answer.status_code for answer in answers] == [200, 422, 404, 405, 404, 200, 200, 200, 401]
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(answers)


def test_ids_are_in_the_order_of_time() -> None:
    ids = [new_request_id() for _ in range(100)]
    assert len(set(ids)) == 100
    assert [UUID(one).int >> 80 for one in ids] == sorted(UUID(one).int >> 80 for one in ids)


def test_a_callers_trace_is_in_the_log(server: Server, http: httpx.Client) -> None:
    answer = http.get("/nowhere", headers={"traceparent": f"00-{TRACE}-{SPAN}-01"})
    line = line_of(server, answer)
    assert (line["trace_id"], line["span_id"]) == (TRACE, SPAN)


@pytest.mark.parametrize(
    "sent",
    [
        f"00-{TRACE}-{SPAN}-01-more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-1",
        f" 00-{TRACE}-{SPAN}-01",
        "",
    ],
)
def test_a_trace_that_is_not_to_the_letter_is_none(sent: str) -> None:
    assert identify([(b"traceparent", sent.encode())])[1] is None


def test_traces_as_the_standard_has_them() -> None:
    parent = f"00-{TRACE}-{SPAN}-01".encode()
    assert identify([(b"traceparent", parent)])[1] == TraceContext(TRACE, SPAN, 1)
    later = f"01-{TRACE}-{SPAN}-00-whatever".encode()
    assert identify([(b"traceparent", later)])[1] == TraceContext(TRACE, SPAN, 0)
    assert identify([(b"traceparent", parent)] * 2)[1] is None
    states = [(b"traceparent", parent), (b"tracestate", b"a=1"), (b"tracestate", b"b=2")]
    assert identify(states)[1] == TraceContext(TRACE, SPAN, 1, "a=1,b=2")


def test_how_long_the_stages_took_is_in_the_answer(http: httpx.Client) -> None:
    answer = classify(http, encoded())
    parts = dict(part.split(";dur=") for part in answer.headers["server-timing"].split(", "))
    assert list(parts) == ["decode", "queue", "compute", "total"]
    told = answer.json()["timing_ms"]
    for name in ("queue", "compute"):
        assert float(parts[name]) == pytest.approx(told[name], abs=0.002)
    assert 0 < float(parts["decode"]) <= told["decode"] + 0.001
    assert float(parts["total"]) >= told["total"] > 0
    assert "server-timing" not in http.get("/nowhere").headers


# An error that nobody expected


@pytest.mark.parametrize("method", ["GET", "POST"])  # through FastAPI, and around it
def test_an_unexpected_error_is_logged_once_with_its_request(
    method: str, capfd: pytest.CaptureFixture[str]
) -> None:
    async def broken(request: Request, what: str) -> Response:
        raise ZeroDivisionError(f"{what}\nINFO: a line of mine")

    inner = FastAPI()
    add_error_handlers(inner)
    inner.add_api_route("/broken/{what}", broken)
    configure_logging("info", "json")
    shortcut = Shortcut(inner, {"/broken/{what}": broken}, on_error=error_response)
    app = ObservabilityMiddleware(shortcut, Metrics())

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as http:
            return await http.request(method, "/broken/by-design", headers={"X-Request-Id": "this-one"})

    answer = asyncio.run(ask())
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] == "this-one"
    assert "by-design" not in answer.text
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    lines = [line for line in lines if line["logger"] != "httpx"]
    assert [line["request_id"] for line in lines] == ["this-one"] * 2
    error, access = lines
    assert error["level"] == "error"
    assert "ZeroDivisionError: by-design\nINFO" in error["exception"]
    assert (access["route"], access["status"], access["outcome"]) == ("/broken/{what}", 500, "failed")


# Text


def run_logging(code: str, log_format: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    program = f"""
import logging
from server.observability.logs import configure_logging
configure_logging("info", {log_format!r}, engine="demo")
logger = logging.getLogger("lct_deploy.test")
{code}
"""
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, **options
    )


HOSTILE = "begin\nINFO:     forged\r\x1b[2K\x1b]0;title\x07\u2028\u202eend\x9b\x00"


def test_text_is_as_it_has_always_been() -> None:
    assert run_logging("logger.info('serving %s', 'demo')", "text").stderr == "INFO:     serving demo\n"
    assert run_logging("logger.debug('nothing')", "text").stderr == ""


def test_nobody_can_write_lines_of_their_own_into_text() -> None:
    done = run_logging(f"logger.warning('a name: %s', {HOSTILE!r})", "text")
    (line,) = done.stderr.splitlines()
    assert line.startswith("WARNING:     a name: begin\\nINFO:     forged\\r\\x1b[2K")
    assert line.isprintable()


def test_an_exception_cannot_either() -> None:
    code = f"try:\n    raise ValueError({HOSTILE!r})\nexcept ValueError:\n    logger.exception('it failed')"
    first, *others = run_logging(code, "text").stderr.rstrip("\n").split("\n")
    assert first == "ERROR:     it failed"
    assert others[0] == "    Traceback (most recent call last):"
    assert all(line.startswith("    ") and line.isprintable() for line in others)


def test_anything_can_be_said_in_json() -> None:
    code = f"""
logger.warning('a name: %s', {HOSTILE!r})
logger.warning('a file: %s', '\\udcff')
logger.warning('fields', extra={{"fields": {{"number": 2**70, "set": {{1}}, "engine": "mine"}}}})
import warnings; warnings.warn("careful")
try:
    1 / 0
except ZeroDivisionError:
    logger.exception("it failed")
"""
    hostile, file, fields, warning, failed = map(json.loads, run_logging(code, "json").stderr.splitlines())
    assert hostile["message"] == f"a name: {HOSTILE}"
    assert file["message"] == "a file: \udcff"
    assert fields["engine"] == "mine"
    assert failed["engine"] == "demo"
    assert (warning["logger"], "careful" in warning["message"]) == ("py.warnings", True)
    assert failed["exception"].endswith("ZeroDivisionError: division by zero")


def test_it_is_text_on_a_terminal_and_json_elsewhere() -> None:
    code = "from server.observability.logs import default_format; print(default_format())"
    ours, theirs = pty.openpty()
    try:
        on_terminal = subprocess.run([sys.executable, "-c", code], stdout=-1, stderr=theirs, check=True)
    finally:
        os.close(ours)
        os.close(theirs)
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert (on_terminal.stdout, elsewhere.stdout) == (b"text\n", b"json\n")


def test_a_server_told_to_write_text(demo_bundle: Path) -> None:
    with Server(demo_bundle, "--log-format", "text") as server:
        with httpx.Client(base_url=server.url, timeout=60) as http:
            answer = classify(http, encoded())
        *_, line = server.messages().splitlines()
        expected = rf"INFO:     POST /v1/classify 200 in [\d.]+ ms \[{answer.headers['x-request-id']}\]"
        assert re.fullmatch(expected, line)


# What outlives a request


def test_what_a_request_has_started_does_not_log_in_its_name(capfd: pytest.CaptureFixture[str]) -> None:
    async def request() -> None:
        record = RequestRecord("loads-a-model", None)
        record.begin({})
        watcher = asyncio.create_task(watch())
        logging.getLogger("x").info("while it runs")
        record.ended = True
        await watcher

    async def watch() -> None:
        assert current_record() is None
        logging.getLogger("x").info("long after")

    configure_logging("info", "json")
    asyncio.run(request())
    during, after = (json.loads(line) for line in capfd.readouterr().err.splitlines())
    assert during["request_id"] == "loads-a-model"
    assert "request_id" not in after
