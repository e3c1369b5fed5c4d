"""Load on a server: `python -m benchmarks.serving.load http://127.0.0.1:8000/v1/classify --rate 20`.

    throughput    closed loop by wrk: so many callers, each of which asks again once it is answered
    closed_loop   the same by our own client, with latencies: of one caller, what a request takes
    open_loop     independent callers (Poisson), whose latency counts from when they wanted to ask

A closed loop waits while the server stalls and so never sees most of a stall. Latencies under load come
from an open loop alone.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import Annotated, Self

import numpy as np
import typer

from benchmarks.serving.client import DUE, OUTCOME, OVER, SENT, Job, Recorded, read_samples, write_job
from benchmarks.serving.command import run_command
from benchmarks.serving.figures import Figures, figures_of
from benchmarks.serving.photos import photos
from benchmarks.serving.requests import Body, Target, raw, target, tensor
from benchmarks.serving.wrk import run_wrk
from lct_deploy.errors import LctDeployError, UsageError
from lct_deploy.progress import progress_bar

MAX_CONNECTIONS = 256
TIMEOUT_SECONDS = 30.0  # for what is not answered at the end
_TICK = 0.2


class Load:
    """A client at work in a process of its own; a context manager that ends it."""

    def __init__(self, where: Target, job: Job) -> None:
        self._job = job
        self._directory = tempfile.TemporaryDirectory(prefix="lct-load.")
        path = Path(self._directory.name)
        write_job(path, job, where.requests)
        command = [sys.executable, "-m", "benchmarks.serving.client", str(path)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603
        assert self._process.stdout is not None  # noqa: S101 - it is piped
        if not self._process.stdout.readline():
            self.close()
            raise LctDeployError("the client did not start; its message stands above")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """End it where it still runs; what came of it is gone."""
        self._process.kill()
        self._process.communicate()
        self._directory.cleanup()

    def stop(self) -> None:
        """Bring the end of a closed loop forward to now."""
        self._process.terminate()

    def recorded(self, description: str | None = None) -> Recorded:
        """Wait for the end, behind a bar where there is a description."""
        self._wait(description)
        return read_samples(Path(self._directory.name))

    def figures(self, description: str | None = None) -> Figures:
        rows = self.recorded(description).rows
        columns = (rows[:, column] for column in (DUE, SENT, OVER, OUTCOME))
        return figures_of(*columns, seconds=self._job.seconds)

    def _wait(self, description: str | None) -> None:
        limit = self._job.seconds + self._job.timeout + 10
        started = time.monotonic()
        with progress_bar() as bar:
            task = bar.add_task(
                description or "", total=round(self._job.seconds), status="", visible=bool(description)
            )
            while self.running:
                spent = time.monotonic() - started
                bar.update(task, completed=min(round(spent), round(self._job.seconds)))
                if spent > limit:
                    raise LctDeployError(f"the client did not end within {limit:.0f} s")
                try:
                    self._process.wait(_TICK)
                except subprocess.TimeoutExpired:
                    continue
        if self._process.returncode != 0:
            raise LctDeployError(
                f"the client failed with {self._process.returncode}; its message stands above"
            )


def throughput(where: Target, *, connections: int, seconds: float, prefix: Sequence[str] = ()) -> Figures:
    """Answers a second by wrk, in whole seconds; raises RuntimeUnavailableError where it is not installed."""
    return run_wrk(where, connections=connections, seconds=seconds, prefix=prefix)


def closed_loop(
    where: Target, *, connections: int, seconds: float, description: str | None = None
) -> Figures:
    """So many callers, with latencies."""
    job = Job(host=where.host, port=where.port, loop="closed", seconds=seconds, connections=connections)
    with Load(where, job) as load:
        return load.figures(description)


def open_loop(
    where: Target, *, rate: float, seconds: float, seed: int = 0, description: str | None = None
) -> Figures:
    """Poisson arrivals, `rate` a second; latency from when each was due."""
    with Load(where, open_job(where, rate=rate, seconds=seconds, seed=seed)) as load:
        return load.figures(description)


def open_job(where: Target, *, rate: float, seconds: float, seed: int = 0) -> Job:
    return Job(
        host=where.host,
        port=where.port,
        loop="open",
        seconds=seconds,
        connections=MAX_CONNECTIONS,
        rate=rate,
        seed=seed,
        timeout=TIMEOUT_SECONDS,
    )


def main(
    url: Annotated[str, typer.Argument(help="Such as http://127.0.0.1:8000/v1/classify.")],
    rate: Annotated[float | None, typer.Option(help="Open loop: requests a second.")] = None,
    connections: Annotated[int | None, typer.Option(min=1, help="Closed loop: callers.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1)] = 10.0,
    wrk: Annotated[bool, typer.Option("--wrk", help="Closed loop by wrk: the throughput alone.")] = False,
    image: Annotated[list[Path] | None, typer.Option(help="Images to send; default: made ones.")] = None,
    shape: Annotated[
        str | None, typer.Option(help="Send tensors of the V2 protocol: their shape, as 1,224,224,3.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout.")] = False,
) -> None:
    """Load a server and report count, errors, throughput and latency."""
    if (rate is None) == (connections is None):
        raise UsageError("how much load?", hint="--rate for an open loop, --connections for a closed one")
    if wrk and connections is None:
        raise UsageError("wrk has no open loop", hint="--connections in the place of --rate")
    where = target(url, bodies(image, shape))
    if rate is not None:
        if rate <= 0:
            raise UsageError(f"a rate of {rate} requests a second")
        figures = open_loop(where, rate=rate, seconds=seconds, description="open loop")
    elif wrk:
        figures = throughput(where, connections=connections or 1, seconds=seconds)
    else:
        figures = closed_loop(where, connections=connections or 1, seconds=seconds, description="closed loop")
    print(dumps(asdict(figures), indent=2) if json else figures)
    if not figures.ok:
        raise LctDeployError(f"{url}: no request was answered with 200")


def bodies(images: list[Path] | None, shape: str | None) -> list[Body]:
    """Images as they are, made ones, or tensors of a shape; raises UsageError where that cannot be."""
    if shape is not None:
        try:
            sizes = tuple(int(size) for size in shape.split(","))
            return [tensor(np.random.default_rng(0).integers(0, 256, sizes, dtype=np.uint8))]
        except ValueError as error:
            raise UsageError(f"{shape!r} is not a shape such as 1,224,224,3") from error
    if not images:
        return [raw(photo) for photo in photos()]
    return [_file(path) for path in images]


def _file(path: Path) -> Body:
    kinds = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp"}
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        raise UsageError(f"{path}: not a file name of a JPEG, PNG or WebP image")
    try:
        return raw(path.read_bytes(), kind)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error


if __name__ == "__main__":
    run_command(main)
