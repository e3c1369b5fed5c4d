"""What observing a request costs: `python -m benchmarks.serving.observing`.

    request   an application that does nothing: alone, counted, and counted and logged by each formatter
    line      the line of a request in the log: as the server writes it, our formatter behind a logger, and
              those of python-json-logger (`pip install python-json-logger==4.2.0`)

All of it writes to /dev/null, a line at a time. Rounds are interleaved. Rows, of microseconds of the
processor, in benchmarks/results/serving-observing-MACHINE.csv; the best of a figure's rounds is printed.
"""

import asyncio
import contextlib
import importlib
import logging
import os
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from benchmarks.environment import machine_name
from benchmarks.rows import RESULTS, write_rows
from benchmarks.serving.command import run_command
from lct_deploy.errors import RuntimeUnavailableError
from server.observability.logs import configure_logging, line_writer
from server.observability.metrics import Metrics
from server.observability.middleware import ObservabilityMiddleware
from server.observability.record import request_record

CALLS = 200
HEADERS = [(b"host", b"127.0.0.1"), (b"content-type", b"image/jpeg"), (b"content-length", b"65536")]
FIELDS = {
    "method": "POST", "route": "/v1/classify", "status": 200, "outcome": "ok", "duration_ms": 5.474,
    "client": "127.0.0.1", "model": "demo", "version": "1", "images": 1, "batch": 1,
    "stages": {"decode": 0.675, "queue": 0.143, "compute": 2.288},
}  # fmt: skip
REQUEST_ID = {"request_id": "01a2144a-f2ff-7538-a422-9f09ad45f0d4"}
MESSAGE = "POST /v1/classify 200 in 5.474 ms"

Run = Callable[[], None]


def observing(rounds: int = 30) -> None:
    """Time each figure in each of the rounds, and write them all."""
    # Only while measuring: what goes wrong is for the user to see. As stderr is, it takes a write a line.
    with Path(os.devnull).open("w", buffering=1) as nowhere, contextlib.redirect_stderr(nowhere):
        figures = {**requests(), **lines()}
        rows = [
            {"figure": figure, "round": round_, "microseconds": f"{microseconds(run):.2f}"}
            for round_ in range(rounds)
            for figure, run in figures.items()
        ]
    also = {"python-json-logger": version("python-json-logger")}
    write_rows(RESULTS / f"serving-observing-{machine_name()}.csv", rows, also)
    for figure in figures:
        best = min(float(row["microseconds"]) for row in rows if row["figure"] == figure)
        print(f"{figure:46} {best:7.2f} µs")


def microseconds(run: Run) -> float:
    """Of the processor, a call: what else the machine does in the meantime is not in it."""
    began = time.thread_time()
    run()
    return (time.thread_time() - began) / CALLS * 1e6


def requests() -> dict[str, Run]:
    """An application alone and observed, with and without a line in the log.

    Of python-json-logger the faster formatter, on orjson.
    """
    configure_logging("info", "json")
    metrics = Metrics()
    series = metrics.model("demo", "1")

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def note_and_answer(scope: Scope, receive: Receive, send: Send) -> None:
        record = request_record(Request(scope))
        record.model, record.route, record.images, record.answered = series, "/v1/classify", 1, 1
        for stage in ("decode", "queue", "compute"):
            record.stage(stage, 0.001)
        await answer(scope, receive, send)

    root = logging.getLogger()
    ours, theirs = root.handlers[0], _theirs("orjson", "OrjsonFormatter")
    observed = ObservabilityMiddleware(note_and_answer, metrics)
    root.handlers[:] = [theirs]
    by_theirs = ObservabilityMiddleware(note_and_answer, metrics)
    root.handlers[:] = [ours]
    return {
        "request alone": _asking(answer, "info", ours),
        "request counted": _asking(observed, "warning", ours),
        "request counted and logged": _asking(observed, "info", ours),
        "request counted, logged by python-json-logger": _asking(by_theirs, "info", theirs),
    }


def _asking(app: ASGIApp, level: str, handler: logging.Handler) -> Run:
    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        pass

    async def ask() -> None:
        for _ in range(CALLS):
            scope = {"type": "http", "method": "POST", "path": "/v1/classify", "headers": HEADERS}
            await app({**scope, "client": ("127.0.0.1", 50000)}, receive, send)

    loop = asyncio.new_event_loop()

    def run() -> None:
        logging.getLogger().setLevel(level.upper())
        logging.getLogger().handlers[:] = [handler]
        loop.run_until_complete(ask())

    return run


def lines() -> dict[str, Run]:
    """The same line by each way of writing it."""
    write = line_writer(logging.getLogger("lct_deploy.server.access"))
    fields = {**REQUEST_ID, **FIELDS}
    return {
        "line": _repeat(lambda: write(logging.INFO, MESSAGE, fields)),
        "line through a logger": _logging(logging.getLogger().handlers[0], {"fields": fields}),
        "line of python-json-logger on orjson": _logging(_theirs("orjson", "OrjsonFormatter"), fields),
        "line of python-json-logger": _logging(_theirs("json", "JsonFormatter"), fields),
    }


def _logging(handler: logging.Handler, extra: dict[str, Any]) -> Run:
    logger = logging.Logger("lct_deploy.server.access", logging.INFO)
    logger.addHandler(handler)
    return _repeat(lambda: logger.info(MESSAGE, extra=extra))


def _theirs(module: str, formatter: str) -> logging.Handler:
    try:
        make = getattr(importlib.import_module(f"pythonjsonlogger.{module}"), formatter)
    except ModuleNotFoundError as error:
        raise RuntimeUnavailableError(
            "python-json-logger is not installed", hint="pip install python-json-logger==4.2.0"
        ) from error
    handler = logging.StreamHandler()
    handler.setFormatter(make("%(asctime)s %(levelname)s %(name)s %(message)s"))
    return handler


def _repeat(call: Run) -> Run:
    def run() -> None:
        for _ in range(CALLS):
            call()

    return run


if __name__ == "__main__":
    run_command(observing)
