"""GET /v2/health/live and /v2/health/ready, for orchestrators."""

from fastapi import APIRouter
from pydantic import BaseModel


class Live(BaseModel):
    """The process answers."""

    live: bool


class Ready(BaseModel):
    """Every model has answered its golden inputs correctly and takes requests."""

    ready: bool


def health_router() -> APIRouter:
    """Models are opened and checked before the server listens, so that answering means ready."""
    router = APIRouter(prefix="/v2/health", tags=["health"])

    @router.get("/live")
    async def live() -> Live:
        return Live(live=True)

    @router.get("/ready")
    async def ready() -> Ready:
        return Ready(ready=True)

    return router
