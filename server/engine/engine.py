"""An engine's loop: takes requests from HTTP processes, runs them in batches, answers."""

import logging
import os
import selectors
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lct_deploy.runtime import Runtime
from server.engine.batcher import Batch, Batcher, Request
from server.engine.config import BatchSizes
from server.engine.connection import Connection
from server.engine.messages import (
    LONGEST,
    AskStatistics,
    Cancel,
    Done,
    Status,
    Submit,
    pack_statistics,
    unpack_for_engine,
)
from server.engine.slots import Geometry, Slots, State
from server.engine.statistics import Recorder

STOP_SECONDS = 5
logger = logging.getLogger("lct_deploy.server.engine")


class Engine:
    """The runtimes of a model behind one queue.

    `control` is the parent's socket: it brings new connections, and the engine ends when it closes.
    `running` (float64, one for each lane) tells the parent since when a lane has been computing, 0 where
    it is idle.

    Each lane is a thread. Whichever is idle listens to the sockets until there is a batch, and leaves
    that to the next idle one when it goes to compute: with one lane no request passes between threads.

    `alone` has the threads of all lanes. It runs a batch that nothing runs or waits beside, and until that
    is done no lane begins another.
    """

    def __init__(
        self,
        runtimes: Sequence[Runtime],
        sizes: BatchSizes,
        *,
        alone: Runtime | None,
        max_delay: float,
        fill_delay: float,
        control: socket.socket,
        running: NDArray[np.float64],
    ) -> None:
        self._alone, self._running = alone, running
        self._batcher = Batcher(sizes, max_delay=max_delay, fill_delay=fill_delay, coming=self._coming)
        self._connections: set[Connection] = set()
        self._recorder = Recorder()
        self._control = control
        self._listening = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK)
        self._backlogs: set[Connection] = set()
        self._orphaned = False
        self._packet = memoryview(bytearray(LONGEST))
        lanes = [runtime for runtime in runtimes for _ in range(runtime.spec.streams)]
        self._lanes = [
            Lane(runtime, self, running[i : i + 1], sizes.largest) for i, runtime in enumerate(lanes)
        ]

    @property
    def recorder(self) -> Recorder:
        return self._recorder

    def run(self) -> None:
        """Work until the parent closes its end; what is running then is finished first."""
        self._selector.register(self._control, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        others = [threading.Thread(target=lane.work, daemon=True) for lane in self._lanes[1:]]
        for thread in others:
            thread.start()
        self._lanes[0].work()
        for thread in others:
            thread.join(STOP_SECONDS)
        for connection in self._connections:
            connection.close()
        self._selector.close()

    def run_next(self, lane: "Lane") -> bool:
        """Listen until there is a batch, and run it in the calling `lane`; False once the parent has gone."""
        with self._listening:
            batch = self._next_batch()
            if batch is None:
                return False
            alone = self._alone if self._nothing_beside() else None
            lane.begin(batch)
            if alone is not None:
                lane.run(batch, alone)
        if alone is None:
            lane.run(batch, lane.runtime)
        return True

    def finish(self, batch: Batch) -> None:
        """A batch has been run: answer the requests that have ended with it."""
        self.end(self._batcher.finish(batch))

    def end(self, requests: Sequence[Request], status: Status | None = None) -> None:
        """Answer requests; with `status` None, what has become of each says it."""
        answers: defaultdict[Connection, list[Done]] = defaultdict(list)
        now = time.monotonic()
        for request in requests:
            ended = status if status is not None else _status(request)
            queued = (request.started or now) - request.arrived
            answers[request.owner].append(
                Done(request.id, ended, queued, request.compute_seconds, request.batch)
            )
            self._recorder.request(ok=ended == Status.OK, queue=queued, total=now - request.arrived)
        for connection, done in answers.items():
            connection.answer(done)

    def _next_batch(self) -> Batch | None:
        wait: float | None = 0
        while not self._orphaned:
            self._listen(wait)
            found = self._batcher.take()
            if isinstance(found, Batch):
                if found.parts:
                    return found
                self.end(found.expired, Status.EXPIRED)
                wait = 0
            else:
                wait = found
        return None

    def _nothing_beside(self) -> bool:
        """Whether no lane computes, and no image waits or is being decoded."""
        return not (self._running.any() or self._batcher.rows or self._coming())

    def _coming(self) -> int:
        """Images that HTTP processes are decoding."""
        return sum(connection.slots.coming() for connection in self._connections)

    def _listen(self, seconds: float | None) -> None:
        """Handle what comes within `seconds`; without a limit for None."""
        for key, events in self._selector.select(seconds):
            if key.fileobj is self._control:
                self._orphaned = not self._accept()
            elif key.fd == self._wake:
                self._watch_backlogs()
            else:
                self._serve(key.data, events)

    def _accept(self) -> bool:
        """A new connection: the geometry of its slots, with its socket and their memory."""
        packet, descriptors, _, _ = socket.recv_fds(self._control, LONGEST, 2)
        if not packet:
            return False
        link, memory = descriptors
        slots = Slots(memory, Geometry.model_validate_json(packet))
        connection = Connection(socket.socket(fileno=link), slots, on_backlog=self._add_backlog)
        self._selector.register(connection.link, selectors.EVENT_READ, connection)
        self._connections.add(connection)
        return True

    def _add_backlog(self, connection: Connection) -> None:
        self._backlogs.add(connection)
        os.eventfd_write(self._wake, 1)

    def _watch_backlogs(self) -> None:
        os.eventfd_read(self._wake)
        while self._backlogs:
            connection = self._backlogs.pop()
            if connection.link.fileno() >= 0:
                both = selectors.EVENT_READ | selectors.EVENT_WRITE
                self._selector.modify(connection.link, both, connection)

    def _serve(self, connection: Connection, events: int) -> None:
        if events & selectors.EVENT_WRITE and connection.flush():
            self._selector.modify(connection.link, selectors.EVENT_READ, connection)
        while True:
            try:
                count = connection.link.recv_into(self._packet)
            except BlockingIOError:
                return
            except ConnectionError:
                count = 0
            if not count:
                self._drop(connection)
                return
            for message in unpack_for_engine(bytes(self._packet[:count])):
                self._handle(connection, message)

    def _handle(self, connection: Connection, message: Submit | Cancel | AskStatistics) -> None:
        if isinstance(message, Submit):
            request = Request(
                id=message.request,
                slots=message.slots,
                deadline=message.deadline,
                arrived=time.monotonic(),
                owner=connection,
            )
            connection.requests[request.id] = request
            self._batcher.put(request)
        elif isinstance(message, Cancel):
            request = connection.requests.get(message.request)
            if request is not None and self._batcher.cancel(request):
                self.end([request])
        else:
            statistics = self._recorder.snapshot(pending=self._batcher.requests)
            connection.send(pack_statistics(statistics.model_dump_json().encode()))

    def _drop(self, connection: Connection) -> None:
        """Its process has gone: nobody waits for its requests."""
        self._selector.unregister(connection.link)
        self._connections.discard(connection)
        for request in list(connection.requests.values()):
            self._batcher.cancel(request)
        connection.close()


class Lane:
    """A thread that runs one batch at a time."""

    def __init__(self, runtime: Runtime, engine: Engine, running: NDArray[np.float64], largest: int) -> None:
        self.runtime, self._engine, self._running = runtime, engine, running
        spec = runtime.spec
        self._images = np.empty((largest, spec.height, spec.width, 3), np.uint8)

    def work(self) -> None:
        while self._engine.run_next(self):
            pass

    def begin(self, batch: Batch) -> None:
        """From here on the lane computes, and these requests are lost if the process dies."""
        now = self._running[0] = time.monotonic()
        for part in batch.parts:
            part.request.started = part.request.started or now
            part.request.batch = max(part.request.batch, batch.rows)
            part.request.owner.slots.mark(part.slots, State.RUNNING)

    def run(self, batch: Batch, runtime: Runtime) -> None:
        self._compute(batch, runtime)
        self._running[0] = 0
        self._engine.finish(batch)

    def _compute(self, batch: Batch, runtime: Runtime) -> None:
        try:
            self._run_batch(batch, runtime)
        except Exception:
            if len(batch.parts) > 1:
                logger.warning("a batch of %d failed; its requests are run one by one", batch.rows)
                for part in batch.parts:
                    self._compute(Batch(parts=[part]), runtime)
                return
            logger.exception("a request failed in the runtime")
            batch.parts[0].request.failed = True

    def _run_batch(self, batch: Batch, runtime: Runtime) -> None:
        began = time.perf_counter()
        images = self._gather(batch)
        gathered = time.perf_counter()
        logits = runtime.infer(images)
        computed = time.perf_counter()
        self._scatter(batch, logits)
        for part in batch.parts:
            part.request.compute_seconds += computed - gathered
        self._engine.recorder.execution(
            batch.rows,
            len(batch.parts),
            gathered - began,
            computed - gathered,
            time.perf_counter() - computed,
        )

    def _gather(self, batch: Batch) -> NDArray[np.uint8]:
        if batch.rows == 1:  # where it lies
            part = batch.parts[0]
            slot = part.slots[0]
            return part.request.owner.slots.images[slot : slot + 1]
        row = 0
        for part in batch.parts:
            images = part.request.owner.slots.images
            for slot in part.slots:
                self._images[row] = images[slot]
                row += 1
        return self._images[:row]

    def _scatter(self, batch: Batch, logits: NDArray[np.float32]) -> None:
        row = 0
        for part in batch.parts:
            kept = part.request.owner.slots.logits
            for slot in part.slots:
                kept[slot] = logits[row]
                row += 1


def _status(request: Request) -> Status:
    if request.cancelled:
        return Status.CANCELLED
    return Status.FAILED if request.failed else Status.OK
