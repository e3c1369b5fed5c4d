"""A worker as the supervisor sees it: an Attendant in a process of its own."""

import asyncio
import contextlib
import logging
import socket
import subprocess
import sys
from collections.abc import Awaitable, Iterable, Sequence
from itertools import groupby

from server.engine.process import describe_exit
from server.offers import Offer
from server.problems import Problem
from server.repository import OwnedRepository
from server.settings import ServerSettings
from server.workers.channel import Channel, ChannelEndedError
from server.workers.messages import (
    Connect,
    Drain,
    Index,
    Listen,
    Load,
    Message,
    OfferedModel,
    Ping,
    Serve,
    Stop,
    Suspend,
    Unload,
    Withdraw,
)
from server.workers.shares import environment_of

START_SECONDS = 60.0
PING_SECONDS = 1.0  # between the answer to one and the next
HANG_SECONDS = 10.0  # without an answer
EXIT_SECONDS = 5.0  # after the last word
logger = logging.getLogger("lct_deploy.server")


class Worker:
    """Runs until it is told to stop, killed, or its parent dies."""

    def __init__(
        self,
        number: int,
        settings: ServerSettings,
        repository: OwnedRepository,
        *,
        inherited: tuple[int, int],
    ) -> None:
        """Start the process, with its own share of the settings; from the supervisor's event loop.

        It inherits the descriptors of the listening socket and of the loads.
        """
        self.number = number
        self._repository = repository
        self._hang_seconds = min(HANG_SECONDS, settings.hang_seconds)
        self._gone = asyncio.Event()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        descriptors = (theirs.fileno(), *inherited)
        command = [sys.executable, "-m", "server.workers", *map(str, (number, *descriptors))]
        with theirs:
            # What it prints belongs in the log. A session of its own: Ctrl-C is for the parent alone.
            self._process = subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.DEVNULL,
                stdout=2,
                pass_fds=descriptors,
                env=environment_of(settings),
                start_new_session=True,
            )
        self._channel = Channel(ours, self._handle, on_end=self._gone.set)
        self._channel.start()

    async def start(self) -> bool:
        """Give it the models; False where it ended before it took requests."""
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._repository.join(self)
                await self._channel.ask(Listen())
        except TimeoutError:
            logger.error("worker %d did not start within %g s: it is killed", self.number, START_SECONDS)
            self.kill()
            return False
        except ChannelEndedError:
            return False
        return True

    async def until_gone(self) -> str:
        """How it ended, in words; one that does not answer is killed."""
        while not self._gone.is_set():
            try:
                await asyncio.wait_for(self._channel.ask(Ping()), self._hang_seconds)
            except TimeoutError:
                logger.error(
                    "worker %d has not answered for %g s: it is killed", self.number, self._hang_seconds
                )
                self.kill()
            except ChannelEndedError:
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._gone.wait(), PING_SECONDS)
        self._repository.leave(self)
        return describe_exit(await asyncio.to_thread(self._wait))

    def drain(self) -> None:
        """Not ready from now on, but serving."""
        self._channel.ask(Drain())

    def stop(self, *, force: bool = False) -> None:
        """End once all that was sent is answered; without waiting for it if that is forced."""
        self._channel.ask(Stop(force=force))

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> None:
        """Nothing is left of it on return, whatever it was doing."""
        self._channel.close()
        self._process.kill()
        self._wait()

    def serve(self, offers: Sequence[Offer]) -> Awaitable[None]:
        # A name at a time: few descriptors in each message.
        by_name = groupby(sorted(offers, key=_name), _name)
        return self._follow([self._serve(list(models)) for _, models in by_name])

    def connect(self, engine: int, link: socket.socket) -> None:
        self._channel.ask(Connect(engine=engine), [link.detach()])

    def suspend(self, engine: int, seconds: float) -> None:
        self._channel.ask(Suspend(engine=engine, seconds=seconds))

    def withdraw(self, engines: Sequence[int], seconds: float | None) -> Awaitable[None]:
        return self._follow([self._channel.ask(Withdraw(engines=tuple(engines), seconds=seconds))])

    def _serve(self, offers: Sequence[Offer]) -> "asyncio.Future[object]":
        models: list[OfferedModel] = []
        descriptors: list[int] = []
        for offer in offers:
            models.append(
                OfferedModel(
                    engine=offer.engine,
                    manifest=offer.manifest,
                    info=offer.info,
                    geometry=offer.geometry,
                    connected=offer.link is not None,
                )
            )
            descriptors += [offer.memory, *([] if offer.link is None else [offer.link.detach()])]
        return self._channel.ask(Serve(models=tuple(models)), descriptors)

    async def _follow(self, answers: Iterable["asyncio.Future[object]"]) -> None:
        """Once it has done so, or has gone: the next worker is given everything anew."""
        try:
            await asyncio.gather(*answers)
        except Problem:
            self.kill()

    async def _handle(self, message: Message, descriptors: Sequence[int]) -> object:
        match message:
            case Load(name=name):
                await self._repository.load(name)
            case Unload(name=name):
                await self._repository.unload(name)
            case Index():
                return [vars(entry) for entry in await self._repository.index()]
            case _:
                raise ValueError(f"a worker does not say {message.kind}")
        return None

    def _wait(self) -> int:
        try:
            return self._process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def _name(offer: Offer) -> str:
    return offer.manifest.name
