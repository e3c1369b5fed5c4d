"""What the routes are made of; whoever runs the application drains and reloads through it."""

from dataclasses import dataclass
from typing import Self

from server.auth import ApiKeys
from server.bodies import Bodies
from server.decoding import Decoders
from server.draining import Drain
from server.models import ModelRegistry
from server.settings import ServerSettings

CLOSE_SECONDS = 5  # for batches that run when the server stops; requests have had their time by then


@dataclass(frozen=True, kw_only=True)
class Service:
    """Everything that lives as long as the server."""

    settings: ServerSettings
    keys: ApiKeys
    models: ModelRegistry
    drain: Drain
    decoders: Decoders
    bodies: Bodies

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
            bodies=Bodies(settings),
        )

    def start(self) -> None:
        """Take requests; from the event loop that will answer them."""
        self.models.start()

    async def close(self) -> None:
        """Answer what has been accepted, then end the engines."""
        await self.models.close(CLOSE_SECONDS)
        self.decoders.close()
