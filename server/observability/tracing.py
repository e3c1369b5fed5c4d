"""Spans of OpenTelemetry: one for each request, and in it one for each of its stages.

Needs the extra `otel`; import it where tracing is asked for. Where spans go, and which are kept, is told
by OpenTelemetry's own variables, such as OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_TRACES_SAMPLER.
"""

import threading
import time

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    format_span_id,
    format_trace_id,
    set_span_in_context,
)
from opentelemetry.trace.span import TraceState
from opentelemetry.util.types import AttributeValue
from starlette.types import Scope

import lct_deploy
from server.observability.middleware import route_of
from server.observability.record import RequestRecord
from server.observability.trace_context import TraceContext

FLUSH_SECONDS = 5.0  # for the last spans to be sent when the server stops


class Tracer:
    """Makes the spans of requests and sends them off in the background."""

    def __init__(self) -> None:
        service = Resource.create({SERVICE_NAME: "lct-deploy", SERVICE_VERSION: lct_deploy.__version__})
        resource = service.merge(OTELResourceDetector().detect())  # what the environment calls it
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("lct_deploy.server", lct_deploy.__version__)

    def start(self, scope: Scope, record: RequestRecord) -> None:
        """Begin the request's span, below the caller's if there is one; it is the record's trace then."""
        span = self._tracer.start_span(
            scope["method"],
            context=_remote(record.trace) if record.trace is not None else Context(),
            kind=SpanKind.SERVER,
            attributes=_request_attributes(scope),
            start_time=time.time_ns() - _ns(time.perf_counter() - record.started),
        )
        record.span = span
        record.trace = _trace_context(span.get_span_context())

    def end(self, scope: Scope, record: RequestRecord) -> None:
        """Add the spans of the stages, and end the request's."""
        span: Span = record.span
        if not isinstance(span, ReadableSpan) or span.start_time is None:  # not sampled
            return
        began = span.start_time
        self._add_stages(span, began, record)
        route, status = route_of(scope, record), record.status or 500
        span.update_name(f"{scope['method']} {route}")
        span.set_attributes({"http.route": route, "http.response.status_code": status})
        span.set_attributes(_model_attributes(record))
        if status >= 500:
            span.set_attribute("error.type", record.outcome)
            span.set_status(StatusCode.ERROR)
        span.end(began + _ns(record.seconds))

    def close(self) -> None:
        """Send what has not been sent, for as long as that may take."""
        # A thread that does not keep the process: a collector that is away is asked again and again.
        flush = threading.Thread(target=self._provider.shutdown, daemon=True)
        flush.start()
        flush.join(FLUSH_SECONDS)

    def _add_stages(self, span: Span, began: int, record: RequestRecord) -> None:
        parent, attributes = set_span_in_context(span, Context()), _model_attributes(record)
        for stage in record.stages:
            at = began + _ns(stage.started - record.started)
            child = self._tracer.start_span(stage.name, parent, attributes=attributes, start_time=at)
            child.end(at + _ns(stage.seconds))


def _remote(trace: TraceContext) -> Context:
    context = SpanContext(
        trace_id=int(trace.trace_id, 16),
        span_id=int(trace.span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(trace.flags),
        trace_state=TraceState.from_header([trace.state]) if trace.state else None,
    )
    return set_span_in_context(NonRecordingSpan(context), Context())


def _trace_context(context: SpanContext) -> TraceContext:
    return TraceContext(
        trace_id=format_trace_id(context.trace_id),
        span_id=format_span_id(context.span_id),
        flags=context.trace_flags,
    )


def _request_attributes(scope: Scope) -> dict[str, AttributeValue]:
    """By OpenTelemetry's conventions for HTTP; without the query, where secrets may be."""
    attributes: dict[str, AttributeValue] = {
        "http.request.method": scope["method"],
        "url.scheme": scope["scheme"],
        "url.path": scope["path"],
        "network.protocol.version": scope["http_version"],
    }
    for name, address in (("server", scope.get("server")), ("client", scope.get("client"))):
        if address and address[1] is not None:
            attributes |= {f"{name}.address": address[0], f"{name}.port": address[1]}
    return attributes


def _model_attributes(record: RequestRecord) -> dict[str, AttributeValue]:
    if record.model is None:
        return {}
    return {
        "lct.model": record.model.name,
        "lct.model.version": record.model.version,
        "lct.images": record.images,
        "lct.batch_size": record.batch,
    }


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
