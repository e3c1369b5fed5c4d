"""Spans, as a collector receives them: a real one, over OTLP."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.scraping import OPENMETRICS
from tests.serving import Server, classify, encoded, upload
from tests.test_engine import wait_for

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SERVER, INTERNAL, ERROR = 2, 1, 2


@dataclass(frozen=True)
class Span:
    """What came over the wire, in plain values."""

    name: str
    trace: str
    id: str
    parent: str
    kind: int
    start: int
    end: int
    status: int
    attributes: dict[str, Any]


@dataclass
class Collector:
    """Takes OTLP over HTTP, and keeps it."""

    url: str
    spans: list[Span] = field(default_factory=list[Span])
    resource: dict[str, Any] = field(default_factory=dict[str, Any])

    def add(self, body: bytes) -> None:
        message = ExportTraceServiceRequest.FromString(body)
        for resource in message.resource_spans:
            self.resource |= _plain(resource.resource.attributes)
            for scope in resource.scope_spans:
                self.spans += [
                    Span(
                        name=span.name,
                        trace=span.trace_id.hex(),
                        id=span.span_id.hex(),
                        parent=span.parent_span_id.hex(),
                        kind=span.kind,
                        start=span.start_time_unix_nano,
                        end=span.end_time_unix_nano,
                        status=span.status.code,
                        attributes=_plain(span.attributes),
                    )
                    for span in scope.spans
                ]

    def request(self) -> Span:
        """The one request that there is."""
        (span,) = [span for span in self.spans if span.kind == SERVER]
        return span


def _plain(attributes: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in attributes}


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Generator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            found.add(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as receiver:
        found = Collector(f"http://127.0.0.1:{receiver.server_port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        yield found
        receiver.shutdown()


@contextmanager
def traced(bundle: Path, **settings: object) -> Generator[tuple[Server, httpx.Client]]:
    """A server that sends spans; all of them have been sent when this ends."""
    with (
        Server(bundle, otel=True, **settings) as server,
        httpx.Client(base_url=server.url, timeout=60) as http,
    ):
        yield server, http


def test_a_request_and_its_stages(collector: Collector, demo_bundle: Path) -> None:
    began = time.time_ns()
    with traced(demo_bundle) as (server, http):
        http.headers.update({"traceparent": f"00-{TRACE}-{SPAN}-01", "X-Request-Id": "this-one"})
        answer = upload(http, encoded(0), encoded(1))
        told = answer.json()["timing_ms"]
    ended = time.time_ns()
    (line,) = [line for line in server.log() if line.get("request_id") == "this-one"]

    span = collector.request()
    assert (span.name, span.trace, span.parent) == ("POST /v1/classify", TRACE, SPAN)
    assert (line["trace_id"], line["span_id"]) == (TRACE, span.id)
    model = {"lct.model": "demo", "lct.model.version": "1", "lct.images": 2, "lct.batch_size": 2}
    host, port = server.url.removeprefix("http://").split(":")
    assert span.attributes.pop("client.port") > 0
    assert span.attributes == model | {
        "http.request.method": "POST", "http.route": "/v1/classify", "http.response.status_code": 200,
        "url.scheme": "http", "url.path": "/v1/classify", "network.protocol.version": "1.1",
        "server.address": host, "server.port": int(port), "client.address": "127.0.0.1",
    }  # fmt: skip
    assert began < span.start < span.end < ended

    stages = [s for s in collector.spans if s.kind == INTERNAL]
    assert [stage.name for stage in stages] == ["decode", "queue", "compute"]
    for stage in stages:
        assert (stage.trace, stage.parent, stage.attributes) == (TRACE, span.id, model)
        assert span.start <= stage.start <= stage.end <= span.end
        assert (stage.end - stage.start) / 1e6 == pytest.approx(told[stage.name], rel=0.05, abs=0.1)
    decode, queue, compute = stages
    assert decode.end <= queue.start
    assert queue.end == pytest.approx(compute.start, abs=1000)


def test_who_sends_them(collector: Collector, demo_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with traced(demo_bundle) as (_, http):
        classify(http, encoded())
    assert collector.resource["service.name"] == "lct-deploy"
    assert collector.resource["service.version"]
    assert collector.request().parent == ""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shoes")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    with traced(demo_bundle) as (_, http):
        classify(http, encoded())
    assert collector.resource["service.name"] == "shoes"
    assert collector.resource["deployment.environment"] == "test"


def test_every_worker_sends_its_own(collector: Collector, demo_bundle: Path) -> None:
    with traced(demo_bundle, workers=2) as (server, _), ExitStack() as stack:
        clients = [stack.enter_context(httpx.Client(base_url=server.url, timeout=60)) for _ in range(4)]
        for number, http in enumerate(clients):
            assert classify(http, encoded(number)).status_code == 200
    assert [span.name for span in collector.spans if span.kind == SERVER] == ["POST /v1/classify"] * 4
    lines = [line for line in server.log() if line.get("route") == "/v1/classify"]
    assert {line["worker"] for line in lines} == {"1", "2"}
    spans = {span.id for span in collector.spans if span.kind == SERVER}
    assert {line["span_id"] for line in lines} == spans


def test_requests_that_fail_and_probes_that_are_none(collector: Collector, demo_bundle: Path) -> None:
    with traced(demo_bundle) as (_, http):
        http.get("/v2/health/ready")
        http.get("/metrics")
        http.get("/nowhere", params={"token": "s3cret"})
        late = {"Content-Type": "image/png", "X-Request-Timeout-Ms": "0"}
        http.post("/v1/classify", content=encoded(), headers=late)
    spans = {span.name: span for span in collector.spans}
    assert set(spans) == {"GET unmatched", "POST /v1/classify"}
    assert spans["GET unmatched"].status != ERROR
    assert "s3cret" not in json.dumps([span.attributes for span in collector.spans])
    assert spans["POST /v1/classify"].status == ERROR
    assert spans["POST /v1/classify"].attributes["error.type"] == "expired"


def test_a_caller_that_keeps_no_trace(collector: Collector, demo_bundle: Path) -> None:
    """By default the caller decides; its trace is in the log all the same."""
    with traced(demo_bundle) as (server, http):
        answer = http.get("/nowhere", headers={"traceparent": f"00-{TRACE}-{SPAN}-00"})
    request_id = answer.headers["x-request-id"]
    (line,) = [line for line in server.log() if line.get("request_id") == request_id]
    assert line["trace_id"] == TRACE
    assert collector.spans == []


def test_a_histogram_leads_to_a_trace(collector: Collector, demo_bundle: Path) -> None:
    with traced(demo_bundle) as (_, http):
        classify(http, encoded())
        wait_for(lambda: "trace_id" in http.get("/metrics", headers={"Accept": OPENMETRICS}).text)
        text = http.get("/metrics", headers={"Accept": OPENMETRICS}).text
    (trace,) = {span.trace for span in collector.spans}
    assert f'# {{trace_id="{trace}"}}' in text


def test_a_collector_that_is_away_costs_the_server_nothing(
    demo_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    server = Server(demo_bundle, otel=True)
    with httpx.Client(base_url=server.url, timeout=60) as http:
        assert classify(http, encoded()).status_code == 200
    began = time.monotonic()
    code, _ = server.stop()
    assert code == 0
    assert time.monotonic() - began < 15
    assert server.log()  # the exporter's complaints are JSON too


def test_without_the_extra_it_says_which(demo_bundle: Path) -> None:
    """FastAPI brings OpenTelemetry's interface; the rest of the package may be absent."""
    program = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter")):
            raise ModuleNotFoundError("no such module", name=name)
sys.meta_path.insert(0, Absent())
from lct_deploy.cli import main
sys.argv = ["lct-deploy", "serve", {str(demo_bundle)!r}, "--port", "0"]
main()
"""
    environment = {**os.environ, "LCT_OTEL": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: LCT_OTEL is on, but the package opentelemetry.")
    assert "pip install 'lct-deploy[otel]'" in done.stderr
    assert done.stdout == ""


def test_serving_loads_nothing_of_it_unless_asked() -> None:
    modules = "server.alone, server.workers.supervisor"
    code = f"import sys, {modules}; print([m for m in sys.modules if m.startswith('opentelemetry')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "opentelemetry.sdk" not in done.stdout
    assert "opentelemetry.exporter" not in done.stdout
