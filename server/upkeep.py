"""An engine as its owner keeps it: started, given to whoever answers requests, restarted when it dies."""

import asyncio
import contextlib
import itertools
import logging
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lct_deploy.atomic import sha256_file
from lct_deploy.bundle import MANIFEST, read_manifest
from lct_deploy.errors import BundleError, LctDeployError
from lct_deploy.manifest import Manifest
from lct_deploy.runtime import RuntimeOptions
from server.engine.config import EngineConfig, EngineInfo
from server.engine.process import EngineProcess
from server.engine.slots import Geometry, create_memory
from server.observability.logs import default_format
from server.observability.metrics import Metrics
from server.offers import Attendant, Offer
from server.settings import ServerSettings

WATCH_SECONDS = 0.25
LONGEST_PAUSE = 30.0  # seconds between two attempts to restart an engine
_numbers = itertools.count(1)
logger = logging.getLogger("lct_deploy.server")


@dataclass(frozen=True, kw_only=True)
class _Seat:
    """The slots of one attendant, which outlive engines."""

    geometry: Geometry
    memory: int


def _threads(count: int) -> str:
    return f"{count} thread" if count == 1 else f"{count} threads"


class KeptEngine:
    """The engine of a bundle, which has answered its golden inputs correctly on this machine.

    `launch` and `wait_ready` need no event loop, so that a server with a bundle that cannot be served
    says so before it listens; everything else belongs to the loop that called `start`.
    """

    def __init__(self, config: EngineConfig, settings: ServerSettings) -> None:
        """Start the engine's process."""
        self.number = next(_numbers)
        self._config, self._settings = config, settings
        self._process = EngineProcess(config)
        self._seats: dict[Attendant, _Seat] = {}
        self._lost = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None
        self._pause = 0.0  # seconds until the next attempt to restart, after one that failed

    @classmethod
    def launch(cls, path: Path, settings: ServerSettings) -> Self:
        """Start the engine of the bundle at `path`; it is not ready yet."""
        config = EngineConfig(
            bundle=path,
            runtime=settings.runtime,
            precision=settings.precision,
            options=RuntimeOptions(
                provider=settings.provider,
                streams=settings.streams,
                cuda_graphs=settings.cuda_graphs,
            ),
            threads=settings.intra_op_threads,
            instances=settings.instances,
            max_batch=settings.max_batch,
            max_delay=settings.max_delay_ms / 1000,
            log_level=settings.log_level,
            log_format=settings.log_format or default_format(),
        )
        return cls(config, settings)

    def wait_ready(self) -> None:
        """Raises BundleError, RuntimeUnavailableError, ParityError … where the bundle must not be served."""
        try:
            self._info = self._process.wait_ready()
            self._manifest = self._read_manifest()
        except BaseException:
            self._process.kill()
            raise

    @property
    def name(self) -> str:
        return self._manifest.name

    @property
    def version(self) -> str:
        return self._manifest.version

    @property
    def ready(self) -> bool:
        """Whether an engine is there that has answered the golden inputs."""
        return not self._lost.is_set()

    def start(self, metrics: Metrics) -> None:
        """Restart the engine from now on whenever it dies or hangs, and count that."""
        self._restarts = metrics.model(self.name, self.version).restarts
        self._process.when_ended(self._lost.set)
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    def offer(self, attendant: Attendant) -> Offer:
        """A place for `attendant`, which has none yet; it hears of new engines until it leaves."""
        spec = self._info.spec
        geometry = Geometry(
            count=self._settings.max_queue,
            height=spec.height,
            width=spec.width,
            classes=spec.num_classes,
        )
        seat = self._seats[attendant] = _Seat(geometry=geometry, memory=create_memory(geometry))
        return Offer(
            engine=self.number,
            manifest=self._manifest,
            info=self._info,
            geometry=geometry,
            memory=os.dup(seat.memory),
            link=self._attach(seat),
        )

    def leave(self, attendant: Attendant) -> None:
        """`attendant` has gone, or needs this engine no longer."""
        if (seat := self._seats.pop(attendant, None)) is not None:
            os.close(seat.memory)

    def describe(self) -> str:
        """One line for the log: what is served, and what runs it."""
        spec = self._info.spec
        versions = ", ".join(f"{name} {version}" for name, version in spec.versions.items())
        compiled = ""
        if spec.compiled_batches:
            batches = ", ".join(map(str, spec.compiled_batches))
            others = "filled up to them" if spec.pads else "split into them"
            if 1 not in spec.compiled_batches and not spec.pads:
                others += " and single images on the bundle's graph"
            compiled = f"; batches of {batches} run compiled, others {others}"
        return (
            f"{self.name} version {self.version}: {spec.precision} on {spec.device} ({versions}), "
            f"batches of at most {self._info.max_batch}{compiled}{self._described_threads()}"
        )

    def _described_threads(self) -> str:
        on_cpu = self._info.spec.device == "CPUExecutionProvider"
        if not on_cpu:
            return ""
        sharing = self._info.sharing
        if sharing.instances == 1:
            return f"; {_threads(sharing.threads)} an inference"
        alone = f", {_threads(sharing.alone)} for one alone" if sharing.alone else ""
        return f"; {sharing.instances} inferences side by side of {_threads(sharing.threads)} each{alone}"

    async def stop(self) -> None:
        """End the engine, after the batch that it is running."""
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
            self._process.forget()
        for attendant in list(self._seats):
            self.leave(attendant)
        await asyncio.to_thread(self._process.stop)

    def abandon(self) -> None:
        """End an engine that was never started."""
        self._process.kill()

    async def _watch(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._lost.wait(), WATCH_SECONDS)
            if self._process.stuck_seconds() > self._settings.hang_seconds:
                logger.error(
                    "the engine of %s has been at one batch for over %g s: it is killed",
                    self.name,
                    self._settings.hang_seconds,
                )
                self._lost.set()
            if self._lost.is_set():
                await self._restart()

    async def _restart(self) -> None:
        """A new engine; what waits in the queue goes there."""
        died = time.monotonic()
        self._process.forget()
        await asyncio.to_thread(self._process.kill)
        logger.error("the engine of %s ended with %s; restarting it", self.name, self._process.exit_status())
        self._process, self._info = await self._replacement()
        self._pause = 0.0
        self._restarts.inc()
        self._lost.clear()
        self._process.when_ended(self._lost.set)
        for attendant, seat in self._seats.items():
            if (link := self._attach(seat)) is not None:
                attendant.connect(self.number, link)
        logger.warning("the engine of %s is back after %.1f s", self.name, time.monotonic() - died)

    async def _replacement(self) -> tuple[EngineProcess, EngineInfo]:
        while True:
            try:
                return await self._relaunch()
            except LctDeployError as error:
                self._pause = min(LONGEST_PAUSE, max(1.0, 2 * self._pause))
                logger.error("the engine of %s cannot be restarted: %s", self.name, error)
                for attendant in self._seats:
                    attendant.suspend(self.number, self._pause)
                await asyncio.sleep(self._pause)

    async def _relaunch(self) -> tuple[EngineProcess, EngineInfo]:
        process = EngineProcess(self._config)
        try:
            info = await asyncio.to_thread(process.wait_ready)
            if info.manifest_sha256 != self._info.manifest_sha256:
                raise BundleError(
                    f"{self._config.bundle}: the bundle has changed since it was loaded",
                    hint="load the model again",
                )
        except BaseException:
            process.kill()
            raise
        return process, info

    def _attach(self, seat: _Seat) -> socket.socket | None:
        """None where the engine has died; the next one is attached when it comes."""
        try:
            return self._process.attach(seat.memory, seat.geometry)
        except OSError:
            return None

    def _read_manifest(self) -> Manifest:
        bundle = self._config.bundle
        manifest = read_manifest(bundle)
        if sha256_file(bundle / MANIFEST) != self._info.manifest_sha256:
            raise BundleError(f"{bundle}: the bundle was replaced while it was being loaded")
        return manifest
