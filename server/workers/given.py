"""The models of a worker: what the supervisor gives it, and asking the supervisor for others."""

import asyncio
import socket
from collections.abc import Iterator, Sequence
from typing import Protocol

from server.offers import Attendant, Offer
from server.repository import IndexEntry
from server.workers.channel import Channel
from server.workers.messages import (
    Connect,
    Drain,
    Index,
    Listen,
    Load,
    Message,
    OfferedModel,
    Serve,
    Stop,
    Suspend,
    Unload,
    Withdraw,
)


class Obedient(Protocol):
    """What the supervisor has a say over in a worker, besides its models."""

    async def until_started(self) -> None:
        """It takes requests on return."""
        ...

    def drain(self) -> None:
        """Not ready from now on."""
        ...

    def stop(self, *, force: bool) -> None:
        """End, without waiting for anybody if that is forced."""
        ...

    def abandon(self) -> None:
        """The supervisor has gone, and the engines with it."""
        ...


class GivenRepository:
    """A Repository whose engines are the supervisor's."""

    def __init__(self, link: socket.socket) -> None:
        self._channel = Channel(link, self._handle, on_end=self._orphaned)
        self._given = asyncio.Event()
        self._engines: set[int] = set()

    def obey(self, server: Obedient) -> None:
        """Pass on to `server` what the supervisor says of it; before `start`."""
        self._server = server

    async def start(self, attendant: Attendant) -> None:
        self._attendant = attendant
        self._channel.start()
        await self._given.wait()

    async def index(self) -> list[IndexEntry]:
        return [IndexEntry(**entry) for entry in await self._channel.ask(Index())]

    async def load(self, name: str) -> None:
        await self._channel.ask(Load(name=name))

    async def unload(self, name: str) -> None:
        await self._channel.ask(Unload(name=name))

    async def close(self, seconds: float) -> None:
        await self._attendant.withdraw(list(self._engines), seconds)

    def _orphaned(self) -> None:
        self._given.set()  # whoever waits for models gets none
        self._server.abandon()

    async def _handle(self, message: Message, descriptors: Sequence[int]) -> None:
        match message:
            case Serve(models=models):
                self._engines.update(model.engine for model in models)
                await self._attendant.serve(list(_offers(models, descriptors)))
            case Connect(engine=engine):
                self._attendant.connect(engine, socket.socket(fileno=descriptors[0]))
            case Suspend(engine=engine, seconds=seconds):
                self._attendant.suspend(engine, seconds)
            case Withdraw(engines=engines, seconds=seconds):
                await self._attendant.withdraw(engines, seconds)
                self._engines.difference_update(engines)
            case _:
                await self._obey(message)

    async def _obey(self, message: Message) -> None:
        match message:
            case Listen():
                self._given.set()
                await self._server.until_started()
            case Drain():
                self._server.drain()
            case Stop(force=force):
                self._server.stop(force=force)
            case _:  # a ping: answering is enough
                pass


def _offers(models: Sequence[OfferedModel], descriptors: Sequence[int]) -> Iterator[Offer]:
    received = iter(descriptors)
    for model in models:
        yield Offer(
            engine=model.engine,
            manifest=model.manifest,
            info=model.info,
            geometry=model.geometry,
            memory=next(received),
            link=socket.socket(fileno=next(received)) if model.connected else None,
        )
