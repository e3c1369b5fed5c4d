"""What is counted while requests run, for Prometheus.

With PROMETHEUS_MULTIPROC_DIR set before this is imported, several processes count together: the
library then keeps the values in files there. Such series are never removed, only set to 0.
"""

import os
from typing import get_args

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from server.observability.record import Outcome, RequestRecord, StageName

SECONDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
    0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30,
)  # fmt: skip
STAGES: tuple[StageName, ...] = get_args(StageName)
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
_MODEL = ("model", "version")


def is_shared() -> bool:
    """Whether several processes count together."""
    return "PROMETHEUS_MULTIPROC_DIR" in os.environ


class Metrics:
    """All that is counted; a process makes one."""

    def __init__(self) -> None:
        prometheus_client.disable_created_metrics()  # a second series beside each, which nobody reads
        self.registry = CollectorRegistry()
        self.requests = self._counter(
            "lct_requests", "Requests by outcome; model is empty where none was chosen.", *_MODEL, "outcome"
        )
        self.responses = self._counter(
            "lct_http_responses", "Responses by method, route and status.", "method", "route", "status"
        )
        self.durations = self._histogram(
            "lct_request_duration_seconds", "Whole requests, of those that ended well.", *_MODEL, "route"
        )
        self.stages = self._histogram(
            "lct_stage_duration_seconds",
            "Parts of requests: decoding their images, waiting for the engine, computing.",
            *_MODEL, "stage",
        )  # fmt: skip
        self.unreadable = self._counter(
            "lct_unreadable_images", "Images that are damaged, or none, or over the limits.", *_MODEL
        )
        self.restarts = self._counter(
            "lct_engine_restarts", "Engines that died or hung and were replaced.", *_MODEL
        )
        self.load_failures = self._counter(
            "lct_model_load_failures", "Attempts to load a model that failed its checks.", "model"
        )
        self.worker_restarts = self._counter(
            "lct_worker_restarts", "Workers that died or hung and were replaced."
        )
        self.in_flight = self._gauge("lct_requests_in_flight", "Requests that are not answered yet.")
        self.queue = self._gauge("lct_queue_images", "Images that wait or are being computed.", *_MODEL)
        self.capacity = self._gauge(
            "lct_queue_capacity_images", "Images that may wait or be computed at a time.", *_MODEL
        )
        self._of_models = (self.requests, self.durations, self.stages, self.unreadable, self.restarts,
                           self.queue, self.capacity)  # fmt: skip
        self._models: dict[tuple[str, str], ModelSeries] = {}
        self._without_model = {outcome: self.requests.labels("", "", outcome) for outcome in OUTCOMES}
        self._responses: dict[tuple[str, str, int], Counter] = {}

    def model(self, name: str, version: str) -> "ModelSeries":
        """The series of a model that is served; the same ones until they are forgotten."""
        key = (name, version)
        if key not in self._models:
            self._models[key] = ModelSeries(self, name, version)
        return self._models[key]

    def forget(self, series: "ModelSeries") -> None:
        """Take away the series of a model that is served no longer."""
        self._models.pop((series.name, series.version), None)
        series.close()
        if not is_shared():
            for metric in self._of_models:
                metric.remove_by_labels({"model": series.name, "version": series.version})

    def count(self, record: RequestRecord, method: str, route: str) -> None:
        """Count a request that has ended."""
        if record.model is not None:
            record.model.count(record, route)
        else:
            self._without_model[record.outcome].inc()
        key = (method, route, record.status or 500)
        responses = self._responses.get(key)
        if responses is None:
            responses = self._responses[key] = self.responses.labels(*key)
        responses.inc()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(name, text, labels, registry=self.registry, buckets=SECONDS)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry, multiprocess_mode="livesum")


class ModelSeries:
    """The series of one version of a model, looked up once: that costs as much as counting.

    They begin at zero, so that the first of its kind is an increase that `rate` sees.
    """

    def __init__(self, metrics: Metrics, name: str, version: str) -> None:
        self.name, self.version = name, version
        labels = (name, version)
        self._all_durations = metrics.durations
        self._durations: dict[str, Histogram] = {}
        self._outcomes = {outcome: metrics.requests.labels(*labels, outcome) for outcome in OUTCOMES}
        self._stages = {stage: metrics.stages.labels(*labels, stage) for stage in STAGES}
        self._unreadable = metrics.unreadable.labels(*labels)
        self._closed = False
        metrics.load_failures.labels(name)
        self.restarts = metrics.restarts.labels(*labels)
        self.queue = metrics.queue.labels(*labels)
        self.capacity = metrics.capacity.labels(*labels)

    def count(self, record: RequestRecord, route: str) -> None:
        """Count a request that has ended; of no effect once the series are forgotten."""
        outcome = record.outcome
        self._outcomes[outcome].inc()
        for stage in record.stages:
            self._stages[stage.name].observe(stage.seconds)
        if outcome in ("ok", "bad_request") and record.images > record.answered:
            self._unreadable.inc(record.images - record.answered)
        if outcome == "ok" and not self._closed:
            self._duration(route).observe(record.seconds, record.exemplar)

    def close(self) -> None:
        self._closed = True
        self.capacity.set(0)

    def _duration(self, route: str) -> Histogram:
        durations = self._durations.get(route)
        if durations is None:
            durations = self._durations[route] = self._all_durations.labels(self.name, self.version, route)
        return durations
