"""The application: `create_app()` for any ASGI server, `lct-deploy serve` for ours."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

import lct_deploy
from server.auth import ApiKeys
from server.classify import classify_endpoint, classify_router
from server.decoding import Decoders
from server.draining import Drain, DrainMiddleware
from server.health import health_router
from server.models import ModelRegistry
from server.problems import add_problem_handlers, error_response
from server.settings import ServerSettings
from server.shortcut import Endpoint, Shortcut

CLOSE_SECONDS = 5  # for batches that run when the server stops; requests have had their time by then


@dataclass(frozen=True, kw_only=True)
class Service:
    """What the routes are made of; whoever runs the application may drain and reload through it."""

    settings: ServerSettings
    keys: ApiKeys
    models: ModelRegistry
    drain: Drain
    decoders: Decoders

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
            decoders=Decoders(settings.decode_threads),
        )

    def app(self) -> ASGIApp:
        """The application; its models take requests from its start-up to its shutdown."""
        classify = classify_endpoint(self.models, self.decoders, self.settings, self.keys)
        app: ASGIApp = self._documented(classify)
        app = Shortcut(app, {"/v1/classify": classify}, on_error=error_response)
        if self.settings.cors_origins:
            origins = [origin.strip() for origin in self.settings.cors_origins.split(",")]
            app = CORSMiddleware(app, origins, allow_methods=["GET", "POST"], allow_headers=["*"])
        return DrainMiddleware(app, self.drain)

    def _documented(self, classify: Endpoint) -> FastAPI:
        """Every route."""
        app = FastAPI(
            title="lct-deploy",
            summary="Image classification with networks proven equal to PyTorch",
            version=lct_deploy.__version__,
            lifespan=self._lifespan,
            redoc_url=None,
        )
        add_problem_handlers(app)
        app.include_router(health_router(self.models, self.drain))
        app.include_router(classify_router(classify))
        return app

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncGenerator[None]:
        self.models.start()
        yield
        await self.models.close(CLOSE_SECONDS)
        self.decoders.close()


def create_app() -> ASGIApp:
    """An application over the settings of the environment; raises what `Service.open` raises."""
    return Service.open(ServerSettings()).app()  # pyright: ignore[reportCallIssue] - from the environment
