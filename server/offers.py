"""What whoever owns the engines gives to whoever answers requests with them."""

import socket
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Protocol

from lct_deploy.manifest import Manifest
from server.engine.config import EngineInfo
from server.engine.slots import Geometry


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A model to be served, and a place with its engine; the descriptors are the receiver's."""

    engine: int  # its number with its owner; a restarted one keeps it
    manifest: Manifest
    info: EngineInfo
    geometry: Geometry
    memory: int  # a descriptor of the slots
    link: socket.socket | None  # None while the engine is being restarted


class Attendant(Protocol):
    """Answers requests: in the process that owns the engines, or in a worker.

    What it is told takes effect in the order in which it was told, whether or not that was awaited.
    """

    def serve(self, offers: Sequence[Offer]) -> Awaitable[None]:
        """Serve these, in place of all models that have the name of one; requests find them on return."""
        ...

    def connect(self, engine: int, link: socket.socket) -> None:
        """The engine has been restarted; what waits goes there."""
        ...

    def suspend(self, engine: int, seconds: float) -> None:
        """The engine could not be restarted; the next attempt comes after `seconds`."""
        ...

    def withdraw(self, engines: Sequence[int], seconds: float | None) -> Awaitable[None]:
        """Serve these no longer; what was accepted has been answered on return, or `seconds` are over."""
        ...
