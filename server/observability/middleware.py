"""Around every request: begins its record, and at its end counts it, logs it and ends its trace."""

import logging
import time
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.observability.logs import line_writer
from server.observability.metrics import Metrics
from server.observability.record import RequestRecord
from server.observability.trace_context import identify

if TYPE_CHECKING:
    from server.observability.tracing import Tracer

_PROBES = ("/v2/health/", "/metrics", "/docs", "/openapi.json", "/favicon.ico")
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
UNMATCHED = "unmatched"
access = logging.getLogger("lct_deploy.server.access")


class ObservabilityMiddleware:
    """Has to be the outermost: what it does not see is not counted, and gets no request id.

    What orchestrators and browsers ask for by themselves all the time, and the paths in `quiet`, is
    neither counted nor traced, and logged only to those who debug.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        tracer: "Tracer | None" = None,
        *,
        quiet: Collection[str] = frozenset(),
    ) -> None:
        self._app, self._metrics, self._tracer, self._paths = app, metrics, tracer, quiet
        self._write = line_writer(access)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = RequestRecord(*identify(scope["headers"]))
        record.begin(scope)
        path: str = scope["path"]
        quiet = path in self._paths or path.startswith(_PROBES) or path.endswith("/ready")
        if not quiet:
            self._start(scope, record)
        try:
            await self._app(scope, receive, _identified(send, record))
        except Exception:
            if not record.reported:
                raise
        finally:
            self._end(scope, record, quiet=quiet)

    def _start(self, scope: Scope, record: RequestRecord) -> None:
        self._metrics.in_flight.inc()
        if self._tracer is not None:
            self._tracer.start(scope, record)

    def _end(self, scope: Scope, record: RequestRecord, *, quiet: bool) -> None:
        record.seconds = time.perf_counter() - record.started
        method, route, status = scope["method"], route_of(scope, record), record.status or 500
        level = logging.DEBUG if quiet else logging.INFO if status < 500 else logging.WARNING
        if access.isEnabledFor(level):
            line = f"{method} {route} {status} in {1000 * record.seconds:.3f} ms"
            self._write(level, line, _fields(scope, record, route))
        if not quiet:
            self._metrics.in_flight.dec()
            self._metrics.count(record, method if method in _METHODS else "other", route)
            if self._tracer is not None:
                self._tracer.end(scope, record)
        record.ended = True


def _identified(send: Send, record: RequestRecord) -> Send:
    """Passes on the response with the request's id, and with how long its stages took."""

    async def answer(message: Message) -> None:
        if message["type"] == "http.response.start":
            record.status = message["status"]
            message["headers"] = [*message.get("headers", ()), *_headers(record)]
        await send(message)

    return answer


def route_of(scope: Scope, record: RequestRecord) -> str:
    """The template of the route that has answered; FastAPI leaves its own in the scope."""
    return record.route or getattr(scope.get("route"), "path", UNMATCHED)


def _headers(record: RequestRecord) -> list[tuple[bytes, bytes]]:
    headers = [(b"x-request-id", record.request_id.encode())]
    if record.stages:
        timing = [f"{stage.name};dur={1000 * stage.seconds:.3f}" for stage in record.stages]
        timing.append(f"total;dur={1000 * (time.perf_counter() - record.started):.3f}")
        headers.append((b"server-timing", ", ".join(timing).encode()))
    return headers


def _fields(scope: Scope, record: RequestRecord, route: str) -> dict[str, Any]:
    """What a line of the log says of a request, besides its id."""
    fields: dict[str, Any] = {
        "method": scope["method"],
        "route": route,
        "status": record.status or 500,
        "outcome": record.outcome,
        "duration_ms": round(1000 * record.seconds, 3),
        "client": scope["client"][0] if scope.get("client") else None,
    }
    if route == UNMATCHED:
        fields["path"] = scope["path"][:256]
    if record.model is not None:
        fields["model"], fields["version"] = record.model.name, record.model.version
    if record.images:
        fields["images"], fields["batch"] = record.images, record.batch
        fields["stages"] = {stage.name: round(1000 * stage.seconds, 3) for stage in record.stages}
    return fields
