"""The client, in a process of its own: `python -m benchmarks.serving.client DIRECTORY` does the job in it.

`benchmarks.serving.load` writes the job and reads what came of it. Prints a line once the first request is
under way.
"""

import asyncio
import gc
import json
import signal
import sys
import time
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Literal

import numpy as np
import uvloop
from numpy.typing import NDArray

from benchmarks.serving.arrivals import Pacer, poisson_arrivals
from benchmarks.serving.connection import Connection, Outcome, connect

JOB, REQUESTS, SAMPLES = "job.json", "requests.npz", "samples.npz"
RETRY_SECONDS = 0.02  # after a connection was refused

# Of each request: when it was due, when it was sent, when it was over (seconds), and its outcome.
DUE, SENT, OVER, OUTCOME = range(4)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to send where. Closed: `connections` each ask again once answered. Open: `rate` a second."""

    host: str
    port: int
    loop: Literal["open", "closed"]
    seconds: float
    connections: int  # of an open loop: at most
    rate: float = 0.0
    seed: int = 0
    timeout: float = 30.0  # after the end, for what is not yet answered
    stop_when_refused: bool = False  # closed: a connection that is refused is the end of it


def write_job(directory: Path, job: Job, requests: tuple[bytes, ...]) -> None:
    (directory / JOB).write_text(json.dumps(asdict(job)))
    arrays = {str(i): np.frombuffer(request, np.uint8) for i, request in enumerate(requests)}
    np.savez(directory / REQUESTS, allow_pickle=False, **arrays)


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A row a request, with the columns DUE, SENT, OVER and OUTCOME; seconds since `started`.

    `started` is `time.perf_counter` of this machine, the same in all processes.
    """

    rows: NDArray[np.float64]
    started: float


def read_samples(directory: Path) -> Recorded:
    with np.load(directory / SAMPLES, allow_pickle=False) as arrays:
        return Recorded(rows=arrays["rows"], started=float(arrays["started"]))


class Samples:
    """Rows for requests in the order in which they were due."""

    def __init__(self) -> None:
        self._values = array("d")
        self.waiting = 0  # requests that are not over

    def begin(self, due: float) -> int:
        row = len(self._values)
        self._values.extend((due, 0.0, 0.0, Outcome.TIMED_OUT))
        self.waiting += 1
        return row // 4

    def sent(self, row: int) -> None:
        self._values[4 * row + SENT] = time.perf_counter()

    def over(self, row: int, outcome: int) -> None:
        self._values[4 * row + OVER] = time.perf_counter()
        self._values[4 * row + OUTCOME] = outcome
        self.waiting -= 1

    def recorded(self, started: float) -> Recorded:
        """What never came is over now."""
        now = time.perf_counter()
        rows = np.array(self._values, np.float64).reshape(-1, 4)
        for column, otherwise in ((OVER, now), (SENT, rows[:, OVER])):
            rows[:, column] = np.where(rows[:, column] == 0, otherwise, rows[:, column])
        rows[:, [DUE, SENT, OVER]] -= started
        return Recorded(rows=rows, started=started)


class OpenLoop:
    """Sends each request when it is due, on a free connection or a new one.

    With all `connections` busy it waits in the client, and its latency counts from when it was due.
    """

    def __init__(self, job: Job, requests: tuple[bytes, ...], announce: Callable[[], None]) -> None:
        self._job, self._requests, self._announce = job, requests, announce
        self._samples = Samples()
        self._free: list[Connection] = []
        self._queue: deque[int] = deque()
        self._open = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._arrivals = poisson_arrivals(job.rate, job.seconds, seed=job.seed)

    async def run(self) -> Recorded:
        pacer = Pacer(self._arrivals.tolist(), self._due)
        self._pacer = pacer
        self._announce()
        await pacer.run()
        deadline = time.perf_counter() + self._job.timeout
        while self._samples.waiting and time.perf_counter() < deadline:
            await asyncio.sleep(0.01)
        return self._samples.recorded(pacer.started)

    def _due(self, index: int) -> None:
        row = self._samples.begin(self._pacer.started + self._arrivals[index])
        while self._free:
            connection = self._free.pop()
            if connection.usable:
                self._send(row, connection)
                return
            self._open -= 1
        self._queue.append(row)
        self._connect_more()

    def _connect_more(self) -> None:
        if self._queue and self._open < self._job.connections:
            self._open += 1
            task = asyncio.create_task(self._connect())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _connect(self) -> None:
        connection = await connect(self._job.host, self._job.port)
        if connection is not None:
            self._release(connection)
            return
        self._open -= 1
        if self._queue:  # another connection may have sent it meanwhile
            self._samples.over(self._queue.popleft(), Outcome.REFUSED)
        self._connect_more()

    def _send(self, row: int, connection: Connection) -> None:
        def answered(outcome: int) -> None:
            self._samples.over(row, outcome)
            self._release(connection)

        self._samples.sent(row)
        connection.send(self._requests[row % len(self._requests)], answered)

    def _release(self, connection: Connection) -> None:
        if not connection.usable:
            self._open -= 1
            self._connect_more()
        elif self._queue:
            self._send(self._queue.popleft(), connection)
        else:
            self._free.append(connection)


class ClosedLoop:
    """So many callers, each of which asks again once it is answered. SIGTERM brings the end forward."""

    def __init__(self, job: Job, requests: tuple[bytes, ...], announce: Callable[[], None]) -> None:
        self._job, self._requests, self._announce = job, requests, announce
        self._samples = Samples()
        self._numbers = count()

    async def run(self) -> Recorded:
        started = time.perf_counter()
        self._end = started + self._job.seconds
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stop)
        self._announce()
        callers = [asyncio.create_task(self._call()) for _ in range(self._job.connections)]
        _, late = await asyncio.wait(callers, timeout=self._job.seconds + self._job.timeout)
        for caller in late:
            caller.cancel()
        return self._samples.recorded(started)

    def _stop(self) -> None:
        self._end = time.perf_counter()

    async def _call(self) -> None:
        while time.perf_counter() < self._end:
            connection = await connect(self._job.host, self._job.port)
            if connection is not None:
                await self._ask(connection)
                continue
            now = time.perf_counter()
            self._samples.over(self._samples.begin(now), Outcome.REFUSED)
            if self._job.stop_when_refused:
                return
            await asyncio.sleep(RETRY_SECONDS)

    async def _ask(self, connection: Connection) -> None:
        """Ask until the end, or as long as the connection lives."""
        over = asyncio.get_running_loop().create_future()

        def ask() -> None:
            if not connection.usable or time.perf_counter() >= self._end:
                if not over.done():
                    over.set_result(None)
                return
            row = self._samples.begin(time.perf_counter())
            self._samples.sent(row)
            connection.send(self._requests[next(self._numbers) % len(self._requests)], answered(row))

        def answered(row: int) -> Callable[[int], None]:
            def record(outcome: int) -> None:
                self._samples.over(row, outcome)
                ask()

            return record

        ask()
        await over
        connection.close()


def announce() -> None:
    """Tell whoever started this process that requests are being sent from now on."""
    print("started", flush=True)


def main() -> None:
    directory = Path(sys.argv[1])
    job = Job(**json.loads((directory / JOB).read_text()))
    with np.load(directory / REQUESTS, allow_pickle=False) as arrays:
        requests = tuple(arrays[str(i)].tobytes() for i in range(len(arrays)))
    gc.disable()  # its pauses would be taken for the server's
    loop = OpenLoop if job.loop == "open" else ClosedLoop
    recorded = uvloop.run(loop(job, requests, announce).run())
    np.savez(directory / SAMPLES, allow_pickle=False, rows=recorded.rows, started=recorded.started)


if __name__ == "__main__":
    main()
