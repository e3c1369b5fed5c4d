"""A version of a model, as requests see it: its manifest, and its place in the queue of its engine."""

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from lct_deploy.runtime.base import RuntimeSpec
from server.engine.client import EngineClient, Inference, Reservation
from server.engine.slots import Slots
from server.engine.statistics import Statistics
from server.observability.metrics import Metrics
from server.observability.record import current_record
from server.offers import Offer
from server.refusals import EngineAbsentError
from server.settings import ServerSettings


class ServedModel:
    """Takes requests from its beginning; whoever owns the engine says what becomes of that.

    As a context manager it is leased: it stays until the end of that, even if it is replaced meanwhile.
    """

    def __init__(self, offer: Offer, settings: ServerSettings, metrics: Metrics) -> None:
        self.engine, self.manifest = offer.engine, offer.manifest
        self.preprocessing = offer.manifest.input.preprocessing
        self.series = metrics.model(self.name, self.version)
        self.series.capacity.set(offer.geometry.count)
        self._info, self._settings = offer.info, settings
        slots = Slots(offer.memory, offer.geometry)
        self._client = EngineClient(slots, on_change=self.series.queue.inc)
        self._leases = 0
        self._unused = asyncio.Event()
        self._unused.set()
        self._pause = 0.0  # seconds until the next attempt to restart the engine, after one that failed
        if offer.link is not None:
            self.connect(offer.link)

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
        return self._info.sharing.instances * self.spec.streams

    @property
    def ready(self) -> bool:
        """Whether an engine is there that has answered the golden inputs."""
        return self._client.connected

    @property
    def outstanding(self) -> int:
        """Images that are reserved, waiting or running."""
        return self._client.outstanding

    def connect(self, link: socket.socket) -> None:
        """Go on with a restarted engine."""
        self._pause = 0.0
        self._client.connect(link)

    def suspend(self, seconds: float) -> None:
        """The engine will not be there for `seconds`: whoever waits for it is told so."""
        self._pause = seconds
        self._client.fail_waiting()

    def __enter__(self) -> Self:
        if (record := current_record()) is not None:
            record.model = self.series
        self._leases += 1
        self._unused.clear()
        return self

    def __exit__(self, *_: object) -> None:
        self._leases -= 1
        if not self._leases:
            self._unused.set()

    def reserve(self, count: int) -> Reservation:
        """Room for `count` images in the queue, before anything is spent on them.

        Raises ServerBusyError where there is none, EngineLostError where no engine will come soon.
        """
        if (record := current_record()) is not None:
            record.images += count
        if self._pause:
            raise EngineAbsentError(
                "the model's engine cannot be restarted at the moment", round(self._pause) + 1
            )
        return self._client.reserve(count)

    async def infer(self, images: Sequence[NDArray[np.uint8]], *, deadline: float) -> Inference:
        """Logits of images (H, W, 3), all at once; raises what `reserve` and `Reservation.infer` raise."""
        with self.reserve(len(images)) as reservation:
            return await reservation.infer(images, deadline)

    async def statistics(self) -> Statistics:
        """What the engine has run since it was last started; raises EngineLostError without one."""
        return await self._client.statistics()

    async def close(self, seconds: float | None = None) -> None:
        """Answer what has been accepted, for at most `seconds`, then leave the engine."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._drain(), seconds)
        self._client.close()

    async def _drain(self) -> None:
        await self._unused.wait()
        await self._client.drain()  # what its clients did not wait for may still be running
