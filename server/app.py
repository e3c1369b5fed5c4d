"""The application: `create_app()` for any ASGI server, `lct-deploy serve` for ours."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI, Request
from fastapi.params import Depends as Dependency
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

import lct_deploy
from server.auth import ApiKeys, Group
from server.cards import cards_router
from server.classify import Classifications, classify_router
from server.draining import DrainMiddleware
from server.errors import add_error_handlers, error_response
from server.health import health_router
from server.observability.middleware import ObservabilityMiddleware
from server.observability.scrape import metrics_router
from server.page import page_router
from server.service import Service, owning_service
from server.settings import ServerSettings
from server.shortcut import Shortcut
from server.v2.documentation import INFER
from server.v2.infer import Inferences
from server.v2.router import v2_router

EXPOSED = ("X-Request-Id", "Server-Timing", "Retry-After")  # headers that pages of other origins may read


def create_app() -> ASGIApp:
    """An application over the settings of the environment; raises what `owning_service` raises."""
    service, _ = owning_service(ServerSettings())  # pyright: ignore[reportCallIssue] - from the environment
    return build_app(service)


def build_app(service: Service) -> ASGIApp:
    """All routes; the models take requests from the application's start-up to its shutdown."""
    classifications, inferences = Classifications(service), Inferences(service)
    documented = _new_fastapi(service)
    add_error_handlers(documented)
    documented.include_router(health_router(service))
    documented.include_router(classify_router(classifications))
    documented.include_router(v2_router(service, inferences))
    documented.include_router(cards_router(service.models), dependencies=[_needs_key(service.keys, "infer")])
    documented.include_router(metrics_router(service), dependencies=[_needs_key(service.keys, "metrics")])
    documented.include_router(page := page_router())
    shortcuts = {"/v1/classify": classifications.answer, **dict.fromkeys(INFER, inferences.answer)}
    app: ASGIApp = Shortcut(documented, shortcuts, on_error=error_response)
    if service.settings.cors_origins:
        origins = [origin.strip() for origin in service.settings.cors_origins.split(",")]
        app = CORSMiddleware(
            app, origins, allow_methods=["GET", "POST"], allow_headers=["*"], expose_headers=EXPOSED
        )
    app = DrainMiddleware(app, service.drain)
    assets = frozenset(getattr(route, "path", "") for route in page.routes)
    return ObservabilityMiddleware(app, service.metrics, service.tracer, quiet=assets)


def _needs_key(keys: ApiKeys, group: Group) -> Dependency:
    async def check(request: Request) -> None:
        keys.check(request, group)

    return Depends(check)


def _new_fastapi(service: Service) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        await service.start()
        yield
        await service.close()

    return FastAPI(
        title="lct-deploy",
        summary="Image classification with networks proven equal to PyTorch",
        version=lct_deploy.__version__,
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,  # clients of the V2 protocol take a redirect for an error
    )
