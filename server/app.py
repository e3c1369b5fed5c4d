"""The application: `create_app()` for any ASGI server, `lct-deploy serve` for ours."""

from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

import lct_deploy
from server.auth import ApiKeys
from server.classify import classify_router
from server.draining import Drain, DrainMiddleware
from server.health import health_router
from server.models import ModelRegistry
from server.problems import add_problem_handlers
from server.settings import ServerSettings

CLOSE_SECONDS = 5  # for batches that run when the server stops; requests have had their time by then


@dataclass(frozen=True, kw_only=True)
class Service:
    """What the routes are made of; whoever runs the application may drain and reload through it."""

    settings: ServerSettings
    keys: ApiKeys
    models: ModelRegistry
    drain: Drain
    decoders: ThreadPoolExecutor

    @classmethod
    def open(cls, settings: ServerSettings) -> Self:
        """Every model has answered its golden inputs when this returns.

        Raises UsageError for settings that cannot be used, and what `ModelRegistry.open` raises.
        """
        return cls(
            settings=settings,
            keys=ApiKeys.of(settings),
            models=ModelRegistry.open(settings),
            drain=Drain(),
            decoders=ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="decode"),
        )

    def app(self) -> FastAPI:
        """The application; its models take requests from its start-up to its shutdown."""
        app = FastAPI(
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
            )
        add_problem_handlers(app)
        infer = [self.keys.require("infer")]
        app.include_router(health_router(self.models, self.drain))
        app.include_router(classify_router(self.models, self.decoders, self.settings), dependencies=infer)
        return app

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncGenerator[None]:
        self.models.start()
        yield
        await self.models.close(CLOSE_SECONDS)
        self.decoders.shutdown(wait=True)


def create_app() -> FastAPI:
    """An application over the settings of the environment; raises what `Service.open` raises."""
    return Service.open(ServerSettings()).app()  # pyright: ignore[reportCallIssue] - from the environment
