"""A worker: answers requests on the supervisor's socket, with the engines that it is given."""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import time
from collections.abc import Generator

from server.http_server import HttpServer
from server.observability.logs import configure_logging
from server.observability.metrics import Metrics
from server.orphans import end_with
from server.service import Service
from server.settings import ServerSettings
from server.workers.accepting import Acceptor, Loads
from server.workers.counting import VARIABLE, count_as, worker_name
from server.workers.given import GivenRepository
from server.workers.usage import SECONDS, Usage

ORPHAN_SECONDS = 5.0
logger = logging.getLogger("lct_deploy.server")


def work(number: int, link: socket.socket, listener: socket.socket, loads: Loads) -> None:
    """Serve until the supervisor says so over `link`, or has gone; the settings are the environment's."""
    for ours in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(ours, signal.SIG_IGN)  # the supervisor hears them, and tells all workers
    supervisor = os.getppid()
    settings = ServerSettings()  # pyright: ignore[reportCallIssue] - from the environment
    configure_logging(settings.log_level, settings.log_format, worker=str(number))
    end_with(link, ORPHAN_SECONDS)
    count_as(worker_name(number))
    repository = GivenRepository(link)
    server = _WorkerServer(Service.of(settings, Metrics(), repository), listener, loads, number)
    repository.obey(server)
    server.run(sockets=[])  # it lets in clients by itself
    if os.getppid() != supervisor:  # it has gone, and nobody else is left to do this
        shutil.rmtree(os.environ[VARIABLE], ignore_errors=True)


class _WorkerServer(HttpServer):
    """A server that stops when it is told to by the supervisor, which has seen to the drain."""

    def __init__(self, service: Service, listener: socket.socket, loads: Loads, number: int) -> None:
        super().__init__(service, listener)
        self._acceptor = Acceptor(
            listener,
            loads,
            number,
            serve=self.serve_connection,
            connections=lambda: len(self.server_state.connections),
        )
        self._taking_requests = asyncio.Event()
        self._usage, self._looked = Usage(), 0.0

    async def when_started(self) -> None:
        self._acceptor.start()
        self._taking_requests.set()

    async def on_tick(self, counter: int) -> bool:
        self._acceptor.tell()
        if time.monotonic() >= self._looked + SECONDS:
            self._looked = time.monotonic()
            self._usage.tell()
        return await super().on_tick(counter)

    def stop_listening(self) -> None:
        self._acceptor.stop()
        self._listener.close()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """None is for a worker."""
        yield

    async def until_started(self) -> None:
        await self._taking_requests.wait()

    def drain(self) -> None:
        self._drain.started = True

    def stop(self, *, force: bool) -> None:
        self._drain.started = self.should_exit = True
        self.force_exit = self.force_exit or force

    def abandon(self) -> None:
        # An engine without its owner ends after the batch that it is running: there is no use in waiting.
        if not self.should_exit:
            logger.error("the supervisor has gone: this worker ends")
        self.stop(force=True)
