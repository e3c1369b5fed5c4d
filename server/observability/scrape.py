"""GET /metrics: what has been counted, and what models and their engines say when they are asked."""

import asyncio
from collections.abc import Iterable, Sequence

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from server.engine.statistics import Statistics
from server.observability.families import of_engines, of_models, of_server, of_triton
from server.observability.metrics import Metrics, is_shared
from server.refusals import EngineLostError
from server.served import ServedModel
from server.service import Service

STATISTICS_SECONDS = 0.5  # for an engine to answer: one that hangs does not keep the others' metrics back


def metrics_router(service: Service) -> APIRouter:
    """In the text format of Prometheus, or as OpenMetrics where that is asked for."""
    router = APIRouter(tags=["metrics"])
    counted = _counted(service.metrics)

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


def _counted(metrics: Metrics) -> list[Collector]:
    if is_shared():  # of the process itself there is nothing then: the next scrape may meet another
        return [MultiProcessCollector(None)]
    process = CollectorRegistry()
    ProcessCollector(registry=process)
    return [metrics.registry, process]


async def _statistics(model: ServedModel) -> Statistics | None:
    """None where the engine does not answer in time, or there is none."""
    try:
        return await asyncio.wait_for(model.statistics(), STATISTICS_SECONDS)
    except (TimeoutError, EngineLostError):
        return None
