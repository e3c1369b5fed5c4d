"""One version of a model being served: its manifest, its engine, and what keeps that engine running."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from lct_deploy.atomic import sha256_file
from lct_deploy.bundle import MANIFEST, read_manifest
from lct_deploy.errors import BundleError, LctDeployError
from lct_deploy.manifest import Manifest
from lct_deploy.runtime import RuntimeOptions
from lct_deploy.runtime.base import RuntimeSpec
from server.engine.client import EngineClient, Inference, Reservation
from server.engine.config import EngineConfig, EngineInfo
from server.engine.process import EngineProcess
from server.engine.slots import Geometry
from server.engine.statistics import Statistics
from server.observability.logs import default_format
from server.observability.metrics import Metrics
from server.observability.record import current_record
from server.refusals import EngineAbsentError
from server.settings import ServerSettings

WATCH_SECONDS = 0.25
LONGEST_PAUSE = 30.0  # seconds between two attempts to restart an engine
logger = logging.getLogger("lct_deploy.server")


class ServedModel:
    """A bundle behind an engine that has answered its golden inputs correctly on this machine.

    `launch` and `wait_ready` need no event loop, so that a server with a bundle that cannot be served
    says so before it listens; everything else belongs to the loop that called `start`.
    """

    def __init__(
        self, config: EngineConfig, settings: ServerSettings, metrics: Metrics, process: EngineProcess
    ) -> None:
        self._config, self._settings, self._metrics, self._process = config, settings, metrics, process
        self._client: EngineClient | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()
        self._leases = 0
        self._unused = asyncio.Event()
        self._unused.set()
        self._pause = 0.0  # seconds until the next attempt to restart, after one that failed

    @classmethod
    def launch(cls, path: Path, settings: ServerSettings, metrics: Metrics) -> Self:
        """Start the engine of the bundle at `path`; it is not ready yet."""
        config = EngineConfig(
            bundle=path,
            runtime=settings.runtime,
            precision=settings.precision,
            options=RuntimeOptions(
                threads=settings.intra_op_threads,
                provider=settings.provider,
                streams=settings.streams,
                cuda_graphs=settings.cuda_graphs,
            ),
            instances=settings.instances,
            max_batch=settings.max_batch,
            max_delay=settings.max_delay_ms / 1000,
            log_level=settings.log_level,
            log_format=settings.log_format or default_format(),
        )
        return cls(config, settings, metrics, EngineProcess(config))

    def wait_ready(self) -> None:
        """Raises BundleError, RuntimeUnavailableError, ParityError … where the bundle must not be served."""
        try:
            self._info = self._process.wait_ready()
            self.manifest = self._read_manifest(self._info)
            self.preprocessing = self.manifest.input.preprocessing
        except BaseException:
            self._process.kill()
            raise

    @property
    def path(self) -> Path:
        return self._config.bundle

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def version(self) -> str:
        return self.manifest.version

    @property
    def spec(self) -> RuntimeSpec:
        return self._info.spec

    @property
    def max_batch(self) -> int:
        return self._info.max_batch

    @property
    def lanes(self) -> int:
        """Batches that can run side by side."""
        return self._settings.instances * self.spec.streams

    @property
    def ready(self) -> bool:
        """Whether an engine is there that has answered the golden inputs."""
        return self._client is not None and self._client.connected

    @property
    def outstanding(self) -> int:
        """Images that are reserved, waiting or running."""
        return self._client.outstanding if self._client is not None else 0

    @property
    def engine_pid(self) -> int:
        return self._process.pid

    def start(self) -> None:
        """Take requests, and restart the engine whenever it dies or hangs."""
        spec = self._info.spec
        self.series = self._metrics.model(self.name, self.version)
        self.series.capacity.set(self._settings.max_queue)
        geometry = Geometry(
            count=self._settings.max_queue,
            height=spec.height,
            width=spec.width,
            classes=spec.num_classes,
        )
        self._client = EngineClient(geometry, on_lost=self._lost.set, on_change=self.series.queue.inc)
        self._client.connect(self._process.attach(self._client.slots))
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    @contextlib.contextmanager
    def lease(self) -> Generator[None]:
        """Keep the engine until the end of a request, even if the model is replaced meanwhile."""
        if (record := current_record()) is not None:
            record.model = self.series
        self._leases += 1
        self._unused.clear()
        try:
            yield
        finally:
            self._leases -= 1
            if not self._leases:
                self._unused.set()

    @contextlib.contextmanager
    def reserve(self, count: int) -> Generator[Reservation]:
        """Room for `count` images in the queue, before anything is spent on them.

        Raises ServerBusyError where there is none, EngineLostError where no engine will come soon.
        """
        if (record := current_record()) is not None:
            record.images += count
        if self._client is None or self._pause:
            raise EngineAbsentError(
                "the model's engine cannot be restarted at the moment", round(self._pause) + 1
            )
        with self._client.reserve(count) as reservation:
            yield reservation

    async def infer(self, images: Sequence[NDArray[np.uint8]], *, deadline: float) -> Inference:
        """Logits of images (H, W, 3), all at once; raises what `reserve` and `Reservation.infer` raise."""
        with self.reserve(len(images)) as reservation:
            return await reservation.infer(images, deadline)

    async def statistics(self) -> Statistics:
        """What the engine has run since it was last started; raises EngineLostError without one."""
        if self._client is None:
            raise EngineAbsentError("the model is not served any more", 1)
        return await self._client.statistics()

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
            f"batches of at most {self.max_batch}{compiled}"
        )

    async def close(self, seconds: float | None = None) -> None:
        """Answer what has been accepted, for at most `seconds`, then end the engine."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._drain(), seconds)
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
        if self._client is not None:
            self._client.close()
        await asyncio.to_thread(self._process.stop)

    async def _drain(self) -> None:
        await self._unused.wait()
        if self._client is not None:  # what its clients did not wait for may still be running
            await self._client.drain()

    def abandon(self) -> None:
        """End the engine of a model that was never started."""
        self._process.kill()

    async def _watch(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._lost.wait(), WATCH_SECONDS)
            if self._lost.is_set():
                await self._restart()
            elif self._process.stuck_seconds() > self._settings.hang_seconds:
                logger.error(
                    "the engine of %s has been at one batch for over %g s: it is killed",
                    self.name,
                    self._settings.hang_seconds,
                )
                self._process.kill()

    async def _restart(self) -> None:
        """A new engine; what waits in the queue goes there."""
        died = time.monotonic()
        await asyncio.to_thread(self._process.kill)
        logger.error("the engine of %s ended with %s; restarting it", self.name, self._process.exit_status())
        client = self._client
        assert client is not None  # noqa: S101 - only a started model is watched
        while True:
            try:
                self._process, self._info = await self._relaunch()
                break
            except LctDeployError as error:
                self._pause = min(LONGEST_PAUSE, max(1.0, 2 * self._pause))
                logger.error("the engine of %s cannot be restarted: %s", self.name, error)
                client.fail_waiting()
                await asyncio.sleep(self._pause)
        self._pause = 0.0
        self.series.restarts.inc()
        self._lost.clear()
        client.connect(self._process.attach(client.slots))
        logger.warning("the engine of %s is back after %.1f s", self.name, time.monotonic() - died)

    async def _relaunch(self) -> tuple[EngineProcess, EngineInfo]:
        process = EngineProcess(self._config)
        try:
            info = await asyncio.to_thread(process.wait_ready)
            if info.manifest_sha256 != self._info.manifest_sha256:
                raise BundleError(
                    f"{self.path}: the bundle has changed since it was loaded", hint="load the model again"
                )
        except BaseException:
            process.kill()
            raise
        return process, info

    def _read_manifest(self, info: EngineInfo) -> Manifest:
        manifest = read_manifest(self.path)
        if sha256_file(self.path / MANIFEST) != info.manifest_sha256:
            raise BundleError(f"{self.path}: the bundle was replaced while it was being loaded")
        return manifest
