"""An engine as a request sees it: reserve slots, put images there, await the logits.

All of it runs in the event loop's thread, so that nothing needs a lock.
"""

import asyncio
import itertools
import math
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from server.engine.messages import (
    LONGEST,
    Done,
    Status,
    pack_ask_statistics,
    pack_cancel,
    pack_submit,
    unpack_for_client,
)
from server.engine.rate import CompletionRate
from server.engine.slots import Slots, State
from server.engine.statistics import Statistics
from server.observability.record import current_record
from server.refusals import (
    DeadlineError,
    EngineAbsentError,
    EngineFailedError,
    EngineLostError,
    ServerBusyError,
)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Inference:
    """Logits (N, classes) with the seconds spent waiting and computing, and the batch they ran in."""

    logits: NDArray[np.float32]
    queue_seconds: float
    compute_seconds: float
    batch: int


@dataclass(eq=False, slots=True)
class _Pending:
    """A request that the engine has, or will have once there is one again."""

    id: int
    slots: tuple[int, ...]
    deadline: float
    answer: "asyncio.Future[Inference]"


class EngineClient:
    """The slots and the connection of this process to one engine.

    Outlives the engine's process: what waited when one died goes to the next, in its order.
    """

    def __init__(self, slots: Slots, *, on_change: Callable[[int], None]) -> None:
        """Owns `slots` from now on; `on_change` hears by how many `outstanding` has changed."""
        self.slots = slots
        self._free = list(reversed(range(slots.geometry.count)))
        self._pending: dict[int, _Pending] = {}  # in the order of their submission
        self._ids = itertools.count(1)
        self._link: socket.socket | None = None
        self._unsent: deque[bytes] = deque()
        self._statistics: deque[asyncio.Future[Statistics]] = deque()
        self._on_change = on_change
        self._packet = memoryview(bytearray(LONGEST))
        self._rate = CompletionRate()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def connected(self) -> bool:
        return self._link is not None

    @property
    def outstanding(self) -> int:
        """Images that are reserved, waiting or running."""
        return self.slots.geometry.count - len(self._free)

    def connect(self, link: socket.socket) -> None:
        """Use a new engine's connection, and give it what waits.

        The old one has ended by now, of which this process may not have heard yet.
        """
        while self._link is not None:
            self._receive()
        link.setblocking(False)
        self._link = link
        asyncio.get_running_loop().add_reader(link.fileno(), self._receive)
        for pending in self._pending.values():
            self._send(pack_submit(pending.id, pending.deadline, pending.slots))

    def reserve(self, count: int) -> "Reservation":
        """Room for `count` images; raises ServerBusyError where there is none now."""
        capacity = self.slots.geometry.count
        if count > len(self._free):
            raise ServerBusyError(
                f"{self.outstanding} images wait, of at most {capacity}", self.retry_after()
            )
        taken = [self._free.pop() for _ in range(count)]
        self.slots.mark(taken, State.COMING)
        self._idle.clear()
        self._on_change(count)
        return Reservation(self, taken)

    def release(self, slots: Sequence[int]) -> None:
        """Room for as many images again."""
        self.slots.mark(slots, State.FREE)
        self._free.extend(slots)
        self._on_change(-len(slots))
        if not self.outstanding:
            self._idle.set()

    def retry_after(self) -> int:
        """Whole seconds in which what is outstanding now will have been answered, as far as one can tell."""
        rate = self._rate.per_second()
        return min(60, max(1, math.ceil(self.outstanding / rate))) if rate > 0 else 1

    async def infer(self, slots: Sequence[int], deadline: float) -> Inference:
        """Logits of the images in `slots`, which are the engine's until it has answered.

        Raises DeadlineError, EngineLostError or EngineFailedError.
        """
        loop = asyncio.get_running_loop()
        pending = _Pending(next(self._ids), tuple(slots), deadline, loop.create_future())
        self.slots.mark(slots, State.WAITING)
        self._pending[pending.id] = pending
        self._send(pack_submit(pending.id, deadline, slots))
        timer = loop.call_later(max(0.0, deadline - time.monotonic()), _expire, pending.answer)
        try:
            return await pending.answer
        finally:
            timer.cancel()
            if pending.id in self._pending:  # cancelled, or too late: the engine need not run it
                self._give_up(pending)

    async def statistics(self) -> Statistics:
        """What the engine has run since it started; raises EngineLostError without one."""
        if self._link is None:
            raise EngineAbsentError("the model's engine is being restarted", self.retry_after())
        asked: asyncio.Future[Statistics] = asyncio.get_running_loop().create_future()
        self._statistics.append(asked)
        self._send(pack_ask_statistics())
        return await asked

    async def drain(self) -> None:
        """Wait until no image is reserved, waiting or running."""
        await self._idle.wait()

    def fail_waiting(self) -> None:
        """No engine will come soon: answer whoever waits for one."""
        for pending in list(self._pending.values()):
            self._lose(pending, EngineAbsentError("the model's engine cannot be restarted at the moment", 1))

    def close(self) -> None:
        self._disconnect()
        self.slots.close()

    def _give_up(self, pending: _Pending) -> None:
        if self._link is None:
            del self._pending[pending.id]
            self.release(pending.slots)
        else:
            self._send(pack_cancel(pending.id))

    def _send(self, message: bytes) -> None:
        """Together with what else is sent in this turn of the event loop: every packet wakes the engine.

        Without a connection nothing is sent: `connect` submits what is pending by then.
        """
        if self._link is None:
            return
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent.append(message)

    def _flush(self) -> None:
        link = self._link
        if link is None:
            return
        while self._unsent:
            packet, count = self._next_packet()
            try:
                link.send(packet)
            except BlockingIOError:
                asyncio.get_running_loop().add_writer(link.fileno(), self._flush)
                return
            except OSError:
                break  # the engine has gone; `_receive` finds that out by itself
            for _ in range(count):
                self._unsent.popleft()
        asyncio.get_running_loop().remove_writer(link.fileno())

    def _next_packet(self) -> tuple[bytes, int]:
        """As many messages as go into one, and how many these are."""
        size = count = 0
        for message in self._unsent:
            if size + len(message) > LONGEST and count:
                break
            size, count = size + len(message), count + 1
        return b"".join(itertools.islice(self._unsent, count)), count

    def _receive(self) -> None:
        assert self._link is not None  # noqa: S101 - it is the link's own callback
        try:
            count = self._link.recv_into(self._packet)
        except BlockingIOError:
            return
        except ConnectionError:
            count = 0
        if not count:
            self._lost()
            return
        message = unpack_for_client(bytes(self._packet[:count]))
        if isinstance(message, bytes):
            _resolve(self._statistics.popleft(), Statistics.model_validate_json(message))
            return
        for done in message:
            self._finish(done)

    def _finish(self, done: Done) -> None:
        pending = self._pending.pop(done.request)
        if not pending.answer.done():
            if done.status == Status.OK:
                logits = self.slots.logits[list(pending.slots)]  # a copy
                _resolve(pending.answer, _inference(logits, done))
            elif done.status == Status.EXPIRED:
                _expire(pending.answer)
            else:
                pending.answer.set_exception(EngineFailedError("the model failed on this request"))
        self.release(pending.slots)
        self._rate.add(len(pending.slots))

    def _lost(self) -> None:
        """The engine has died: what it was computing is lost, what waited stays pending."""
        self._disconnect()
        for pending in list(self._pending.values()):
            if pending.answer.done():
                self._pending.pop(pending.id)
                self.release(pending.slots)
            elif any(self.slots.states[slot] == State.RUNNING for slot in pending.slots):
                why = "the model's engine died while it was computing this request"
                self._lose(pending, EngineLostError(why, 1))

    def _lose(self, pending: _Pending, why: EngineLostError) -> None:
        del self._pending[pending.id]
        if not pending.answer.done():
            pending.answer.set_exception(why)
        self.release(pending.slots)

    def _disconnect(self) -> None:
        if self._link is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._link.fileno())
        loop.remove_writer(self._link.fileno())
        self._link.close()
        self._link = None
        self._unsent.clear()
        while self._statistics:
            asked = self._statistics.popleft()
            if not asked.done():
                asked.set_exception(EngineLostError("the model's engine died", 1))


class Reservation:
    """Slots of one request, for as long as its context: each is filled with an image, or goes back unused."""

    def __init__(self, client: EngineClient, slots: list[int]) -> None:
        self._client, self._slots = client, slots

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._slots:
            self._client.release(self._slots)

    async def infer(self, images: Sequence[NDArray[np.uint8]], deadline: float) -> Inference:
        """Logits of at most as many images (H, W, 3) as were reserved; call it once.

        Raises what `EngineClient.infer` raises.
        """
        used = self._slots[: len(images)]
        for slot, image in zip(used, images, strict=True):
            self._client.slots.images[slot] = image
        del self._slots[: len(images)]
        submitted = time.perf_counter()
        inference = await self._client.infer(used, deadline)
        if (record := current_record()) is not None:
            record.inferred(inference, submitted)
        return inference


def _inference(logits: NDArray[np.float32], done: Done) -> Inference:
    return Inference(
        logits=logits,
        queue_seconds=done.queue_seconds,
        compute_seconds=done.compute_seconds,
        batch=done.batch,
    )


def _expire(answer: "asyncio.Future[Inference]") -> None:
    if not answer.done():
        answer.set_exception(DeadlineError("the request was not answered before its deadline"))


def _resolve(future: "asyncio.Future[T]", value: T) -> None:
    if not future.done():
        future.set_result(value)
