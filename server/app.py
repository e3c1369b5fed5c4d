"""The application: `create_app()` for any ASGI server, `lct-deploy serve` for ours."""

from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from fastapi import FastAPI

import lct_deploy
from server.classify import classify_router
from server.draining import Drain, DrainMiddleware
from server.health import health_router
from server.models import ModelRegistry
from server.problems import add_problem_handlers
from server.settings import ServerSettings

CLOSE_SECONDS = 5  # for batches that run when the server stops; requests have had their time by then


def create_app(settings: ServerSettings | None = None, drain: Drain | None = None) -> FastAPI:
    """An application over the bundles of `settings` (by default those of the environment).

    Whoever runs it may start a `drain` before it stops. Every model has answered its golden inputs when
    this returns; raises what `ModelRegistry.open` raises.
    """
    settings = settings or ServerSettings()  # pyright: ignore[reportCallIssue] - from the environment
    models = ModelRegistry.open(settings)
    drain = drain or Drain()
    decoders = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="decode")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        models.start()
        yield
        await models.close(CLOSE_SECONDS)
        decoders.shutdown(wait=True)

    app = FastAPI(
        title="lct-deploy",
        summary="Image classification with networks proven equal to PyTorch",
        version=lct_deploy.__version__,
        lifespan=lifespan,
        redoc_url=None,
    )
    app.add_middleware(DrainMiddleware, drain=drain)
    add_problem_handlers(app)
    app.include_router(health_router(models, drain))
    app.include_router(classify_router(models, decoders, settings))
    return app
