"""What the routes are made of; whoever runs the application drains and reloads through it."""

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from lct_deploy.errors import RuntimeUnavailableError
from server.auth import ApiKeys
from server.bodies import Bodies
from server.decoding import Decoders
from server.draining import Drain
from server.models import Models
from server.observability.metrics import Metrics
from server.repository import OwnedRepository, Repository
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
    models: Models
    repository: Repository
    drain: Drain
    decoders: Decoders
    bodies: Bodies

    @classmethod
    def of(cls, settings: ServerSettings, metrics: Metrics, repository: Repository) -> Self:
        """With the models that `repository` gives.

        Raises UsageError for settings that cannot be used, RuntimeUnavailableError without what they need.
        """
        keys, tracer = ApiKeys.of(settings), open_tracer(settings)
        return cls(
            settings=settings,
            keys=keys,
            metrics=metrics,
            tracer=tracer,
            models=Models(settings, metrics),
            repository=repository,
            drain=Drain(),
            decoders=Decoders(settings.decode_threads),
            bodies=Bodies(settings),
        )

    async def start(self) -> None:
        """Take requests; from the event loop that will answer them."""
        await self.repository.start(self.models)

    async def close(self) -> None:
        """Answer what has been accepted, then let go of the engines."""
        await self.repository.close(CLOSE_SECONDS)
        self.decoders.close()
        if self.tracer is not None:
            await asyncio.to_thread(self.tracer.close)


def owning_service(settings: ServerSettings) -> tuple[Service, OwnedRepository]:
    """A service with engines of its own; every model has answered its golden inputs when this returns.

    Raises what `Service.of` and `OwnedRepository.launch` raise.
    """
    metrics = Metrics()
    repository = OwnedRepository(settings, metrics)
    service = Service.of(settings, metrics, repository)
    repository.launch()
    return service, repository


def open_tracer(settings: ServerSettings) -> "Tracer | None":
    """None unless it is asked for; raises RuntimeUnavailableError where its packages are missing."""
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
