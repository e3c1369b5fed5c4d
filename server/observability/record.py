"""What is known of one request: begun with it, filled in while it runs, counted and logged at its end.

Everything that runs for a request finds its record in the context, without being handed it.
"""

import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from server.observability.trace_context import TraceContext

if TYPE_CHECKING:  # engines write logs too, and need none of these
    from fastapi import Request
    from starlette.types import Scope

    from server.engine.client import Inference
    from server.observability.metrics import ModelSeries

Outcome = Literal[
    "ok", "bad_request", "unauthorized", "rejected", "expired",
    "engine_lost", "unavailable", "failed", "client_gone",
]  # fmt: skip
StageName = Literal["decode", "queue", "compute"]
_OF_STATUS: dict[int, Outcome] = {
    401: "unauthorized",
    403: "unauthorized",
    429: "rejected",
    499: "client_gone",
    503: "unavailable",
    504: "expired",
}
_KEY = "lct_deploy.record"
_current: ContextVar["RequestRecord | None"] = ContextVar("lct_deploy.record", default=None)


class Stage(NamedTuple):
    """A part of a request: when it began, by `time.perf_counter`, and how long it took."""

    name: StageName
    started: float
    seconds: float


@dataclass(eq=False, slots=True)
class RequestRecord:
    """Of one request. Fields are filled in by whoever knows them first."""

    request_id: str
    trace: TraceContext | None  # the caller's span; with spans of our own, the request's
    started: float = field(default_factory=time.perf_counter)
    model: "ModelSeries | None" = None
    images: int = 0
    answered: int = 0  # images that have been inferred
    batch: int = 0  # images in the largest batch that one of them ran in
    stages: list[Stage] = field(default_factory=list[Stage])
    route: str | None = None  # its template, never the path: anybody can make up paths
    status: int | None = None  # of the response, once that has begun
    refusal: Outcome | None = None  # where the status alone does not tell
    reported: bool = False  # an error that nobody expected is in the log
    seconds: float = 0.0  # that it took in all
    ended: bool = False
    span: Any = None  # OpenTelemetry's, where spans are made

    def begin(self, scope: "Scope") -> None:
        """Make it the record of the request that `scope` is of, and of what runs from here on."""
        scope.setdefault("state", {})[_KEY] = self
        _current.set(self)

    def stage(self, name: StageName, seconds: float, started: float | None = None) -> None:
        """A part of the request that took `seconds`; it has ended just now unless `started` is given."""
        self.stages.append(
            Stage(name, time.perf_counter() - seconds if started is None else started, seconds)
        )

    def inferred(self, inference: "Inference", submitted: float) -> None:
        """Logits have come: of images that were submitted to the engine at `submitted`."""
        self.answered += len(inference.logits)
        self.batch = max(self.batch, inference.batch)
        self.stage("queue", inference.queue_seconds, submitted)
        self.stage("compute", inference.compute_seconds, submitted + inference.queue_seconds)

    @property
    def exemplar(self) -> dict[str, str] | None:
        """What leads from a histogram to a trace, where one is kept of this request."""
        sampled = self.span is not None and self.trace is not None and self.trace.flags & 1
        return {"trace_id": self.trace.trace_id} if self.trace is not None and sampled else None

    @property
    def outcome(self) -> Outcome:
        """What became of the request, in one word."""
        status = self.status or 500
        if status < 400:
            return "ok"
        return self.refusal or _OF_STATUS.get(status) or ("bad_request" if status < 500 else "failed")


def current_record() -> RequestRecord | None:
    """Of the request that this code runs for; None outside of requests."""
    record = _current.get()
    # What a request has started may outlive it, with its context.
    return None if record is None or record.ended else record


def request_record(request: "Request") -> RequestRecord:
    """The record of `request`."""
    return request.scope["state"][_KEY]
