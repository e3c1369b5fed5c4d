"""GET /v2/health/live and /v2/health/ready, for orchestrators."""

from fastapi import APIRouter, Response
from pydantic import BaseModel

from server.service import Service


class Live(BaseModel):
    """The process answers."""

    live: bool


class Ready(BaseModel):
    """Every model has answered its golden inputs correctly and takes requests."""

    ready: bool


def health_router(service: Service) -> APIRouter:
    """Live while the process answers.

    Ready while every model has an engine that has run a real inference, until the server is told to stop.
    """
    router = APIRouter(prefix="/v2/health", tags=["health"])

    @router.get("/live")
    async def live() -> Live:
        return Live(live=True)

    @router.get("/ready", responses={503: {"model": Ready}})
    async def ready(response: Response) -> Ready:
        is_ready = service.models.ready and not service.drain.started
        response.status_code = 200 if is_ready else 503
        return Ready(ready=is_ready)

    return router
