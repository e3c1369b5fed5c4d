"""What serving adds to decoding and inference: `python -m benchmarks.serving.overhead BUNDLE...`.

    throughput   answers a second over HTTP (wrk) beside what the same cores do in one process without it,
                 in the best arrangement that was found
    one          one caller: its median latency beside the median of decoding and inference alone
    poisson      latency at a share of that throughput, with independent callers
    noop         requests a second where neither decoding nor inference costs much: raw V2 tensors, one core;
                 beside those of uvicorn with an application that does nothing
    start        importing the server, and from its start until it is ready, on the demo bundle

Rounds are interleaved; ratios are of measurements that were made one right after the other. Rows in
benchmarks/results/serving-overhead-MACHINE.csv.
"""

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import typer

from benchmarks.environment import machine_name
from benchmarks.quartiles import Quartiles
from benchmarks.rows import RESULTS, write_rows
from benchmarks.serving.command import run_command
from benchmarks.serving.contenders import running_ours
from benchmarks.serving.figures import Figures, Latency
from benchmarks.serving.in_process import Arrangement, arrangements
from benchmarks.serving.load import closed_loop, open_loop, throughput
from benchmarks.serving.noop import NAME, SIZE, noop_bundle
from benchmarks.serving.peers.running import Running
from benchmarks.serving.requests import raw_tensor, target
from benchmarks.serving.servers import Server, ask, lct_deploy_serve
from benchmarks.serving.wrk import required_wrk
from benchmarks.spine import seconds_of, start_to_ready
from lct_deploy.bundle import Bundle, open_bundle
from lct_deploy.cores import available_cores
from lct_deploy.errors import LctDeployError, UsageError
from lct_deploy.progress import track
from lct_deploy.sample import DEMO_CHECKPOINT

T = TypeVar("T")
CONNECTIONS = (8, 32)
NOOP_CONNECTIONS = 16
BATCHES = (1, 8)
STARTS = 10
PARTS = ("throughput", "one", "poisson", "noop", "start")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure. `beside` is the one that it is compared with, measured right before or after it."""

    bundle: str
    what: str
    round: int
    value: float
    beside: float | None
    unit: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Of the measurements."""

    rounds: int
    seconds: float
    load: float


def main(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles; not of a GPU's runtime.")],
    parts: Annotated[str, typer.Option(help="What to measure.")] = ",".join(PARTS),
    rounds: Annotated[int, typer.Option(min=1)] = 9,
    seconds: Annotated[float, typer.Option(min=1, help="Of each measurement.")] = 6.0,
    load: Annotated[float, typer.Option(min=0.05, max=0.95, help="Of the Poisson arrivals.")] = 0.7,
    serve: Annotated[str, typer.Option(help="More options of `lct-deploy serve`.")] = "",
    output: Annotated[
        Path | None, typer.Option(help="Default: benchmarks/results/serving-overhead-MACHINE.csv.")
    ] = None,
) -> None:
    """Measure what the server adds."""
    chosen = parts.split(",")
    if unknown := [part for part in chosen if part not in PARTS]:
        raise UsageError(f"unknown parts {', '.join(unknown)}", hint=f"parts are {', '.join(PARTS)}")
    wrk = required_wrk()
    opened = [open_bundle(path) for path in bundles]
    lengths = Lengths(rounds=rounds, seconds=seconds, load=load)
    jobs: list[Callable[[], Iterable[Row]]] = []
    if {"throughput", "one", "poisson"} & set(chosen):
        jobs += [partial(of_bundle, bundle, chosen, lengths, shlex.split(serve)) for bundle in opened]
    jobs += [partial(of_noop, lengths)] if "noop" in chosen else []
    jobs += [of_start] if "start" in chosen else []
    rows, failures = _done(jobs)
    if not rows:
        raise LctDeployError("; ".join(failures))
    path = output or RESULTS / f"serving-overhead-{machine_name()}.csv"
    write_rows(path, [asdict(row) for row in rows], also={"wrk": wrk, "serve": serve})
    print("\n".join(summary(rows)))
    if failures:
        raise LctDeployError("; ".join(failures))


def _done(jobs: Sequence[Callable[[], Iterable[Row]]]) -> tuple[list[Row], list[str]]:
    """Rows of all jobs; one that fails takes none from the others."""
    rows: list[Row] = []
    failures: list[str] = []
    for job in jobs:
        try:
            rows += job()
        except LctDeployError as error:
            failures.append(str(error))
    return rows, failures


def of_bundle(bundle: Bundle, parts: Sequence[str], lengths: Lengths, options: Sequence[str]) -> list[Row]:
    """Rounds of the server beside the same work in one process."""
    arrangement = best_arrangement(bundle, lengths.seconds) if "throughput" in parts else None
    rows: list[Row] = []
    with running_ours(bundle.path, *options) as running:
        rounds = _Rounds(bundle, running, lengths, arrangement)
        for number in track(range(lengths.rounds), bundle.manifest.name, total=lengths.rounds):
            rows += rounds.measure(number, parts)
            running.server.check()
    return rows


class _Rounds:
    """Rounds on a server that runs; it idles while the other process is measured."""

    def __init__(
        self, bundle: Bundle, running: Running, lengths: Lengths, arrangement: Arrangement | None
    ) -> None:
        self._bundle, self._where, self._lengths = bundle, running.where, lengths
        self._arrangement = arrangement
        self._connections = best(CONNECTIONS, self._throughput, "callers")
        self._name = f"{bundle.manifest.name} ({bundle.manifest.arch}, {bundle.manifest.precision})"

    def measure(self, number: int, parts: Sequence[str]) -> Iterator[Row]:
        most = 0.0
        if self._arrangement is not None:
            row = self._beside_one_process(number, self._arrangement)
            most = row.value
            yield row
        if "one" in parts:
            yield self._one(number)
        if "poisson" in parts:
            yield self._poisson(number, self._lengths.load * (most or self._throughput(self._connections)))

    def _throughput(self, connections: int) -> float:
        return throughput(self._where, connections=connections, seconds=self._lengths.seconds).throughput

    def _beside_one_process(self, number: int, arrangement: Arrangement) -> Row:
        """Which of the two comes first changes from round to round."""
        if number % 2:
            http, alone = (
                self._throughput(self._connections),
                in_process(self._bundle, arrangement, self._lengths.seconds),
            )
        else:
            alone = in_process(self._bundle, arrangement, self._lengths.seconds)
            http = self._throughput(self._connections)
        detail = f"{self._connections} callers; {arrangement}"
        return self._row("throughput", number, http, alone, "images/s", detail)

    def _one(self, number: int) -> Row:
        threads = available_cores()
        alone = one_at_a_time(self._bundle, threads, self._lengths.seconds)
        latency = _latency(closed_loop(self._where, connections=1, seconds=self._lengths.seconds))
        return self._row("one", number, latency.p50, alone, "ms, p50", f"{threads} threads")

    def _poisson(self, number: int, rate: float) -> Row:
        figures = open_loop(self._where, rate=rate, seconds=self._lengths.seconds, seed=number)
        latency = _latency(figures)
        return self._row(
            "poisson", number, latency.p99, latency.p50, "ms, p99 and p50", f"{rate:.2f} requests/s"
        )

    def _row(self, what: str, number: int, value: float, beside: float, unit: str, detail: str) -> Row:
        return Row(
            bundle=self._name, what=what, round=number, value=value, beside=beside, unit=unit, detail=detail
        )


def best_arrangement(bundle: Bundle, seconds: float) -> Arrangement:
    """The one that decodes and infers most images in a second; short runs tell them apart."""
    sizes = {a.profiles[0].opt for a in bundle.manifest.artifacts if a.kind == "compiled"}
    found = list(arrangements(available_cores(), tuple(sorted(sizes.union(BATCHES)))))
    short = max(seconds / 2, 1.0)
    return best(found, lambda arrangement: in_process(bundle, arrangement, short), "arrangements")


def best(found: Sequence[T], measure: Callable[[T], float], what: str) -> T:
    """The one of which `measure` gives most.

    Each is measured twice, and not in succession: a moment in which the machine is slow must not decide.
    """
    done = dict.fromkeys(found, 0.0)
    for one in track(2 * list(found), what, total=2 * len(found)):
        done[one] = max(done[one], measure(one))
    return max(found, key=lambda one: done[one])


def in_process(bundle: Bundle, arrangement: Arrangement, seconds: float) -> float:
    """Images a second, in a process that is gone afterwards."""
    options = [f"--{name}={value}" for name, value in asdict(arrangement).items()]
    return _run_in_process(bundle, seconds, *options)["images_per_second"]


def one_at_a_time(bundle: Bundle, threads: int, seconds: float) -> float:
    """The median of its milliseconds."""
    told = _run_in_process(bundle, seconds, "--one", f"--threads={threads}")
    return round(float(np.median(told["milliseconds"])), 3)


def _run_in_process(bundle: Bundle, seconds: float, *options: str) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "benchmarks.serving.in_process",
        str(bundle.path),
        f"--seconds={seconds}",
    ]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)  # noqa: S603 - ours
    if done.returncode != 0:
        raise LctDeployError(f"decoding and inference in one process failed: {done.stderr.strip()}")
    return json.loads(done.stdout)


def of_noop(lengths: Lengths) -> list[Row]:
    """The server on one core beside uvicorn alone there, the client on the others, where there are others.

    Batches, as of any network that costs less than what surrounds it.
    """
    first, *others = sorted(os.sched_getaffinity(0))
    on_first, elsewhere = _taskset([first]), _taskset(others or [first])
    with ExitStack() as held:
        directory = held.enter_context(tempfile.TemporaryDirectory(prefix="lct-noop."))
        bundle = noop_bundle(Path(directory) / NAME)
        serve = lct_deploy_serve(str(bundle.path), "--max-batch", str(NOOP_CONNECTIONS))
        bare = [sys.executable, "-m", "benchmarks.serving.bare"]
        servers = [held.enter_context(Server(command, prefix=on_first)) for command in (serve, bare)]
        tensor = raw_tensor(np.zeros((1, SIZE, SIZE, 3), np.uint8))
        targets = [target(f"{server.url()}/v2/models/{NAME}/infer", [tensor]) for server in servers]
        for where in targets:
            status, body = ask(where)
            if status != 200:
                raise LctDeployError(f"port {where.port} answers with status {status}: {body[:200]!r}")

        measure = partial(throughput, connections=NOOP_CONNECTIONS, seconds=lengths.seconds, prefix=elsewhere)
        rows: list[Row] = []
        for number in track(range(lengths.rounds), NAME, total=lengths.rounds):
            ours, alone = (measure(where).throughput for where in targets)
            rows.append(_noop_row(number, ours, alone, len(others)))
        for server in servers:
            server.check()
        return rows


def _noop_row(number: int, ours: float, alone: float, cores: int) -> Row:
    return Row(
        bundle=NAME,
        what="noop",
        round=number,
        value=ours,
        beside=alone,
        unit="requests/s",
        detail=f"{NOOP_CONNECTIONS} callers, batches of as many; beside uvicorn alone; client on {cores} "
        "other cores",
    )


def _taskset(cores: Sequence[int]) -> tuple[str, ...]:
    return "taskset", "--cpu-list", ",".join(map(str, cores))


def of_start() -> list[Row]:
    """Fresh processes, on the demo bundle."""
    with tempfile.TemporaryDirectory(prefix="lct-start.") as directory:
        bundle = Path(directory) / "demo"
        seconds_of([sys.executable, "-m", "lct_deploy", "export", str(DEMO_CHECKPOINT), "-o", str(bundle)])
        jobs = {
            "import server.http_server": lambda: seconds_of(
                [sys.executable, "-c", "import server.http_server"]
            )[0],
            "start to ready": lambda: start_to_ready(bundle)[0],
        }
        return [
            Row(bundle="demo", what=what, round=number, value=round(job(), 4), beside=None, unit="s")
            for number in track(range(STARTS), "starts", total=STARTS)
            for what, job in jobs.items()
        ]


def _latency(figures: Figures) -> Latency:
    if figures.latency is None:
        raise LctDeployError(f"no request was answered: {figures}")
    return figures.latency


def summary(rows: Sequence[Row]) -> list[str]:
    """A line a figure: medians, and the quartiles of the ratio of each pair."""
    lines: list[str] = []
    for bundle, what in dict.fromkeys((row.bundle, row.what) for row in rows):
        own = [row for row in rows if (row.bundle, row.what) == (bundle, what)]
        line = f"{bundle}: {what} {np.median([row.value for row in own]):.3f} {own[0].unit}"
        pairs = [(row.value, row.beside) for row in own if row.beside]
        if pairs:
            ratio = Quartiles.of(value / beside for value, beside in pairs)
            added = np.median([value - beside for value, beside in pairs])
            line += (
                f", beside {np.median([beside for _, beside in pairs]):.3f}: ratio {ratio}, "
                f"difference {added:+.3f}"
            )
        lines.append(f"{line} ({own[0].detail})" if own[0].detail else line)
    return lines


if __name__ == "__main__":
    run_command(main)
