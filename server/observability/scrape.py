"""GET /metrics: what has been counted, and what models and their engines say when they are asked."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from server.engine.statistics import Statistics
from server.models import Models
from server.observability.families import of_engines, of_models, of_server, of_triton
from server.observability.metrics import is_shared
from server.refusals import EngineLostError
from server.served import ServedModel
from server.service import Service

STATISTICS_SECONDS = 0.5  # for an engine to answer: one that hangs does not keep the others' metrics back


def metrics_router(service: Service) -> APIRouter:
    """In the text format of Prometheus, or as OpenMetrics where that is asked for."""
    router = APIRouter(tags=["metrics"])
    counted = _counted(service)

    @router.get("/metrics", response_class=Response)
    async def scrape(request: Request) -> Response:
        """Metrics for Prometheus."""
        served = service.models.models
        statistics = await asyncio.gather(*(_statistics(model) for model in served))
        families = [
            *of_server(ready=service.models.ready and not service.drain.started),
            *of_models(served),
            *of_engines(served, statistics),
            *of_triton(served, statistics),
        ]
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
        body = await asyncio.to_thread(encode, _Together(counted, families))
        return Response(body, headers={"Content-Type": media_type})

    return router


class _Together(Collector):
    def __init__(self, counted: Sequence[Collector], families: Sequence[Metric]) -> None:
        self._counted, self._families = counted, families

    def collect(self) -> Iterable[Metric]:
        for collector in self._counted:
            yield from collector.collect()
        yield from self._families


class _OfServed(Collector):
    """What workers count together, without the series of models that have gone: no file loses any."""

    def __init__(self, together: Collector, models: Models) -> None:
        self._together, self._models = together, models

    def collect(self) -> Iterable[Metric]:
        served = {("", ""), *((model.name, model.version) for model in self._models.models)}
        for metric in self._together.collect():
            metric.samples = [s for s in metric.samples if _model_of(s.labels) in (None, *served)]
            yield metric


def _model_of(labels: Mapping[str, str]) -> tuple[str, str] | None:
    return (labels["model"], labels["version"]) if {"model", "version"} <= labels.keys() else None


def _counted(service: Service) -> list[Collector]:
    if is_shared():  # of the process itself there is nothing then: the next scrape may meet another
        together = MultiProcessCollector(None)
        return [_OfServed(together, service.models) if service.settings.processes > 1 else together]
    process = CollectorRegistry()
    ProcessCollector(registry=process)
    return [service.metrics.registry, process]


async def _statistics(model: ServedModel) -> Statistics | None:
    """None where the engine does not answer in time, or there is none."""
    try:
        return await asyncio.wait_for(model.statistics(), STATISTICS_SECONDS)
    except (TimeoutError, EngineLostError):
        return None
