"""The application: `create_app()` for any ASGI server, `lct-deploy serve` for ours."""

from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from fastapi import FastAPI

import lct_deploy
from server.cards import cards_router
from server.classify import classify_router
from server.health import health_router
from server.models import ModelRegistry
from server.page import page_router
from server.problems import add_problem_handlers
from server.settings import ServerSettings


def create_app(settings: ServerSettings | None = None) -> FastAPI:
    """An application over the bundles of `settings` (by default those of the environment).

    Opens and checks the bundles before it returns; raises what `ModelRegistry.open` raises.
    """
    settings = settings or ServerSettings()  # pyright: ignore[reportCallIssue] - from the environment
    models = ModelRegistry.open(settings)
    decoders = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="decode")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        yield
        decoders.shutdown(wait=True)
        models.close()

    app = FastAPI(
        title="lct-deploy",
        summary="Image classification with networks proven equal to PyTorch",
        version=lct_deploy.__version__,
        lifespan=lifespan,
        redoc_url=None,
    )
    add_problem_handlers(app)
    app.include_router(health_router())
    app.include_router(classify_router(models, decoders, max_images=settings.max_images))
    app.include_router(cards_router(models))
    app.include_router(page_router())
    return app
