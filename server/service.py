"""What the routes are made of; whoever runs the application drains and reloads through it."""

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from lct_deploy.errors import RuntimeUnavailableError
from server.auth import ApiKeys
from server.bodies import Bodies
from server.decoding import Decoders
from server.draining import Drain
from server.models import ModelRegistry
from server.observability.metrics import Metrics
from server.settings import ServerSettings

if TYPE_CHECKING:
    from server.observability.tracing import Tracer

CLOSE_SECONDS = 5  # for batches that run when the server stops; requests have had their time by then


@dataclass(frozen=True, kw_only=True)
class Service:
    """Everything that lives as long as the server."""

    settings: ServerSettings
    keys: ApiKeys
    metrics: Metrics
    tracer: "Tracer | None"
    models: ModelRegistry
    drain: Drain
    decoders: Decoders
    bodies: Bodies

    @classmethod
    def open(cls, settings: ServerSettings) -> Self:
        """Every model has answered its golden inputs when this returns.

        Raises UsageError for settings that cannot be used, and what `ModelRegistry.open` raises.
        """
        keys, tracer, metrics = ApiKeys.of(settings), _open_tracer(settings), Metrics()
        return cls(
            settings=settings,
            keys=keys,
            metrics=metrics,
            tracer=tracer,
            models=ModelRegistry.open(settings, metrics),
            drain=Drain(),
            decoders=Decoders(settings.decode_threads),
            bodies=Bodies(settings),
        )

    def start(self) -> None:
        """Take requests; from the event loop that will answer them."""
        self.models.start()

    async def close(self) -> None:
        """Answer what has been accepted, then end the engines."""
        await self.models.close(CLOSE_SECONDS)
        self.decoders.close()
        if self.tracer is not None:
            await asyncio.to_thread(self.tracer.close)


def _open_tracer(settings: ServerSettings) -> "Tracer | None":
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
