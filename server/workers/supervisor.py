"""The process that owns the socket, the engines and the workers, and answers no request itself."""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import time
from collections.abc import Generator
from pathlib import Path
from types import FrameType

from lct_deploy.errors import RuntimeUnavailableError
from server.auth import ApiKeys
from server.listening import listen, url_of
from server.observability.metrics import Metrics
from server.repository import OwnedRepository
from server.service import CLOSE_SECONDS, open_tracer
from server.settings import ServerSettings
from server.workers.accepting import Loads
from server.workers.counting import counted_together, forget_gauges, worker_name
from server.workers.process import Worker
from server.workers.shares import share_of
from server.workers.usage import SECONDS, Usage

STEADY_SECONDS = 10.0  # after which a worker's end has nothing to do with its start
LONGEST_PAUSE = 30.0  # seconds between two attempts to start a worker
GRACE_SECONDS = 15.0  # for workers to end, after those that their requests have
logger = logging.getLogger("lct_deploy.server")


def supervise(settings: ServerSettings, listener: socket.socket) -> None:
    """Serve on `listener`, which is bound, by as many workers as the settings say, until told to stop.

    Raises what a server of one process raises, before it listens; RuntimeUnavailableError where a worker
    cannot start.
    """
    _check(settings)
    share = share_of(settings)
    with _tidy_on_sigterm(), counted_together("supervisor") as directory:
        metrics = Metrics()
        repository = OwnedRepository(share, metrics)
        asyncio.run(_Supervisor(share, listener, metrics, repository, directory).run())


@contextlib.contextmanager
def _tidy_on_sigterm() -> Generator[None]:
    """A server that is told to end while it starts leaves nothing behind either."""

    def leave(signum: int, frame: FrameType | None) -> None:
        sys.exit(128 + signum)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Supervisor:
    def __init__(
        self,
        settings: ServerSettings,
        listener: socket.socket,
        metrics: Metrics,
        repository: OwnedRepository,
        directory: Path,
    ) -> None:
        self._settings, self._listener = settings, listener
        self._restarts, self._repository, self._directory = metrics.worker_restarts, repository, directory
        self._loads = Loads.create(settings.processes)
        self._workers: dict[int, Worker] = {}
        self._stopping, self._hurried = asyncio.Event(), asyncio.Event()
        self._reloads: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        telling = asyncio.get_running_loop().create_task(_tell_usage())
        try:
            workers = [self._launch(number) for number in range(1, self._settings.processes + 1)]
            self._repository.launch()  # while they import what they need
            self._repository.watch()
            self._hear_signals()
            listen(self._listener)
            keepers = await self._start(workers)
            print(url_of(self._listener), flush=True)
            await self._stopping.wait()
            await self._stop(keepers)
        finally:
            telling.cancel()
            for worker in self._workers.values():
                worker.end()  # of those that have ended, without effect
            await self._repository.close(CLOSE_SECONDS)

    async def _start(self, workers: "list[Worker]") -> "list[asyncio.Task[None]]":
        """Each takes requests and is kept running; raises RuntimeUnavailableError where one cannot start."""
        for worker, started in zip(workers, await asyncio.gather(*(w.start() for w in workers)), strict=True):
            if not started:
                raise RuntimeUnavailableError(
                    f"worker {worker.number} ended with {await worker.until_gone()} while it was starting",
                    hint="its messages are above",
                )
        keepers = [asyncio.get_running_loop().create_task(self._keep(worker)) for worker in workers]
        for keeper in keepers:  # which end when the server stops, or by an error that stops it
            keeper.add_done_callback(lambda _: self._stopping.set())
        return keepers

    def _launch(self, number: int) -> Worker:
        inherited = (self._listener.fileno(), self._loads.descriptor)
        worker = Worker(number, self._settings, self._repository, inherited=inherited)
        self._workers[number] = worker
        return worker

    async def _keep(self, worker: Worker) -> None:
        """Another worker whenever one ends; later and later if they end soon after they were started."""
        pause, began = 0.0, time.monotonic()
        while True:
            ended = await worker.until_gone()
            self._loads.leave(worker.number)
            forget_gauges(self._directory, worker_name(worker.number))
            if self._stopping.is_set():
                return
            lived = time.monotonic() - began
            pause = 0.0 if lived > STEADY_SECONDS else min(LONGEST_PAUSE, 2 * pause or 0.5)
            again = f"the next one is started in {pause:g} s" if pause else "restarting it"
            logger.error("worker %d ended with %s after %.1f s; %s", worker.number, ended, lived, again)
            if await _is_set_within(self._stopping, pause):
                return
            self._restarts.inc()
            began = time.monotonic()
            worker = self._launch(worker.number)
            if await worker.start():
                logger.warning("worker %d is back after %.1f s", worker.number, time.monotonic() - began)

    async def _stop(self, keepers: "list[asyncio.Task[None]]") -> None:
        """Not ready, but serving; then nobody is let in, and all who were are answered."""
        for worker in self._workers.values():
            worker.drain()
        await _is_set_within(self._hurried, self._settings.drain_seconds)
        for worker in self._workers.values():
            worker.stop()
        self._listener.close()  # theirs are open until they have let in the last
        seconds = self._settings.shutdown_seconds + GRACE_SECONDS
        ended, late = await asyncio.wait(keepers, timeout=seconds)
        if late:
            logger.error("%d workers have not ended within %g s: they are killed", len(late), seconds)
        for keeper in ended:
            keeper.result()

    def _hear_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for told in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(told, self._told_to_stop, told)
        loop.add_signal_handler(signal.SIGHUP, self._reload)

    def _told_to_stop(self, told: signal.Signals) -> None:
        again = self._stopping.is_set()
        self._stopping.set()
        # Told twice, or by somebody at a terminal: there is no load balancer to wait for.
        if again or told == signal.SIGINT:
            self._hurried.set()
        if again and told == signal.SIGINT:
            for worker in self._workers.values():
                worker.stop(force=True)

    def _reload(self) -> None:
        """SIGHUP, as with other servers: read again what lies on the disk."""
        self._reloads.add(task := asyncio.get_running_loop().create_task(self._repository.reload_all()))
        task.add_done_callback(self._reloads.discard)


def _check(settings: ServerSettings) -> None:
    """What workers need and would complain about, each on its own."""
    ApiKeys.of(settings)
    if (tracer := open_tracer(settings)) is not None:
        tracer.close()


async def _tell_usage() -> None:
    usage = Usage(gives_start=True)
    while True:
        usage.tell()
        await asyncio.sleep(SECONDS)


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()
