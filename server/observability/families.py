"""Metrics that are made when they are asked for, of what models and their engines say.

Engines count for themselves, from their start on: with a new engine the counters begin at zero, which
Prometheus takes for what it is. Every HTTP process hears the same from an engine, so that nothing is
counted twice.
"""

import platform
from collections.abc import Iterable, Sequence
from operator import attrgetter

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

import lct_deploy
from server.engine.statistics import BatchStatistics, Statistics
from server.served import ServedModel

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_MODEL = ("model", "version")

# Names and units of Triton's metrics, for dashboards that exist. Its counters do not end in _total, without
# which the formats know no counters: they are of unknown type.
_TRITON = (
    ("request_success", "Requests that were answered.", attrgetter("success.count")),
    ("request_failure", "Requests that failed, expired or were cancelled.", attrgetter("fail.count")),
    ("count", "Images that were computed.", attrgetter("inference_count")),
    ("exec_count", "Batches that were computed.", attrgetter("execution_count")),
    ("request_duration_us", "Requests in the engine, in microseconds.", attrgetter("success.ns")),
    ("queue_duration_us", "Of these, waiting.", attrgetter("queue.ns")),
    ("compute_input_duration_us", "Of these, gathering batches.", attrgetter("compute_input.ns")),
    ("compute_infer_duration_us", "Of these, computing.", attrgetter("compute_infer.ns")),
    ("compute_output_duration_us", "Of these, handing out results.", attrgetter("compute_output.ns")),
)

Engines = Sequence[Statistics | None]


def of_server(*, ready: bool) -> Iterable[Metric]:
    build = GaugeMetricFamily("lct_build_info", "1; its labels say what runs.", labels=("version", "python"))
    build.add_metric((lct_deploy.__version__, platform.python_version()), 1)
    yield build
    yield GaugeMetricFamily("lct_ready", "1 while /v2/health/ready says so.", value=int(ready))


def of_models(models: Sequence[ServedModel]) -> Iterable[Metric]:
    info = GaugeMetricFamily(
        "lct_model_info",
        "1; its labels say how a model runs.",
        labels=(*_MODEL, "arch", "runtime", "precision", "device"),
    )
    ready = GaugeMetricFamily("lct_model_ready", "1 while the engine takes requests.", labels=_MODEL)
    lanes = GaugeMetricFamily("lct_engine_lanes", "Batches that can run side by side.", labels=_MODEL)
    for model in models:
        spec = model.spec
        info.add_metric((*_of(model), model.manifest.arch, spec.runtime, spec.precision, spec.device), 1)
        ready.add_metric(_of(model), int(model.ready))
        lanes.add_metric(_of(model), model.lanes)
    yield from (info, ready, lanes)


def of_engines(models: Sequence[ServedModel], engines: Engines) -> Iterable[Metric]:
    """In step with `models`; None stands for an engine that has not answered."""
    sizes = HistogramMetricFamily("lct_batch_size_images", "Images in a batch.", labels=_MODEL)
    busy = CounterMetricFamily("lct_engine_busy_seconds", "Seconds of lanes in batches.", labels=_MODEL)
    for model, engine in zip(models, engines, strict=True):
        if engine is not None:
            images = sum(batch.batch_size * batch.compute_infer.count for batch in engine.batches)
            sizes.add_metric(_of(model), _buckets(engine.batches), images)
            busy.add_metric(_of(model), sum(_busy_ns(batch) for batch in engine.batches) / 1e9)
    yield from (sizes, busy)


def of_triton(models: Sequence[ServedModel], engines: Engines) -> Iterable[Metric]:
    """In step with `models`; None stands for an engine that has not answered."""
    answered = [(model, e) for model, e in zip(models, engines, strict=True) if e is not None]
    for name, text, read in _TRITON:
        metric = Metric(f"nv_inference_{name}", text, "unknown")
        for model, engine in answered:
            value = read(engine) / 1000 if name.endswith("_us") else read(engine)
            metric.add_sample(metric.name, dict(zip(_MODEL, _of(model), strict=True)), value)
        yield metric
    pending = GaugeMetricFamily(
        "nv_inference_pending_request_count", "Requests that wait in the engine.", labels=_MODEL
    )
    for model, engine in answered:
        pending.add_metric(_of(model), engine.pending)
    yield pending


def _of(model: ServedModel) -> tuple[str, str]:
    return model.name, model.version


def _buckets(batches: Sequence[BatchStatistics]) -> list[tuple[str, float]]:
    """Cumulative: batches of at most so many images."""
    counts = [(batch.batch_size, batch.compute_infer.count) for batch in batches]
    return [
        (floatToGoString(bound), sum(count for size, count in counts if size <= bound))
        for bound in (*BATCH_SIZES, float("inf"))
    ]


def _busy_ns(batch: BatchStatistics) -> int:
    return batch.compute_input.ns + batch.compute_infer.ns + batch.compute_output.ns
