"""The application: `create_app()` for any ASGI server, `lct-deploy serve` for ours."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

import lct_deploy
from lct_deploy.errors import RuntimeUnavailableError
from server.auth import ApiKeys
from server.classify import classify_router
from server.draining import Drain, DrainMiddleware
from server.health import health_router
from server.models import ModelRegistry
from server.observability.metrics import Metrics
from server.observability.middleware import ObservabilityMiddleware
from server.observability.scrape import metrics_router
from server.problems import add_problem_handlers
from server.settings import ServerSettings

if TYPE_CHECKING:
    from server.observability.tracing import Tracer

CLOSE_SECONDS = 5  # for batches that run when the server stops; requests have had their time by then


@dataclass(frozen=True, kw_only=True)
class Service:
    """What the routes are made of; whoever runs the application may drain and reload through it."""

    settings: ServerSettings
    keys: ApiKeys
    metrics: Metrics
    tracer: "Tracer | None"
    models: ModelRegistry
    drain: Drain
    decoders: ThreadPoolExecutor

    @classmethod
    def open(cls, settings: ServerSettings) -> Self:
        """Every model has answered its golden inputs when this returns.

        Raises UsageError for settings that cannot be used, and what `ModelRegistry.open` raises.
        """
        keys, tracer, metrics = ApiKeys.of(settings), _tracer(settings), Metrics()
        return cls(
            settings=settings,
            keys=keys,
            metrics=metrics,
            tracer=tracer,
            models=ModelRegistry.open(settings, metrics),
            drain=Drain(),
            decoders=ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="decode"),
        )

    def app(self) -> FastAPI:
        """The application; its models take requests from its start-up to its shutdown."""
        app = _App(
            observe=lambda inner: ObservabilityMiddleware(inner, self.metrics, self.tracer),
            title="lct-deploy",
            summary="Image classification with networks proven equal to PyTorch",
            version=lct_deploy.__version__,
            lifespan=self._lifespan,
            redoc_url=None,
        )
        app.add_middleware(DrainMiddleware, drain=self.drain)
        if self.settings.cors_origins:
            app.add_middleware(
                CORSMiddleware,
                allow_origins=[origin.strip() for origin in self.settings.cors_origins.split(",")],
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=["X-Request-Id", "Server-Timing", "Retry-After"],
            )
        add_problem_handlers(app)
        infer, scrape = [self.keys.require("infer")], [self.keys.require("metrics")]
        app.include_router(health_router(self.models, self.drain))
        app.include_router(metrics_router(self.models, self.metrics, self.drain), dependencies=scrape)
        app.include_router(classify_router(self.models, self.decoders, self.settings), dependencies=infer)
        return app

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncGenerator[None]:
        self.models.start()
        yield
        await self.models.close(CLOSE_SECONDS)
        self.decoders.shutdown(wait=True)
        if self.tracer is not None:
            await asyncio.to_thread(self.tracer.close)


def create_app() -> FastAPI:
    """An application over the settings of the environment; raises what `Service.open` raises."""
    return Service.open(ServerSettings()).app()  # pyright: ignore[reportCallIssue] - from the environment


class _App(FastAPI):
    """Has one more layer around all others, so that this sees the answers to unexpected errors too."""

    def __init__(self, *, observe: Callable[[ASGIApp], ASGIApp], **options: Any) -> None:
        super().__init__(**options)
        self._observe = observe

    def build_middleware_stack(self) -> ASGIApp:
        return self._observe(super().build_middleware_stack())


def _tracer(settings: ServerSettings) -> "Tracer | None":
    if not settings.otel:
        return None
    try:
        from server.observability.tracing import Tracer
    except ModuleNotFoundError as error:
        raise RuntimeUnavailableError(
            f"LCT_OTEL is on, but the package {error.name} is not installed",
            hint="pip install 'lct-deploy[otel]'",
        ) from error
    return Tracer()
