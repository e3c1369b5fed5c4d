"""What the harness adds to what it measures: `python -m benchmarks.harness`.

A worker, as it runs a network, is given in its place something that is busy for a known time. What is
recorded of an inference beyond that, and what lies between two inferences, is the harness's own: by the
median of a turn's inferences, and of the turns. Rows go to benchmarks/results/harness-MACHINE.csv; where
the harness adds LIMIT or more of an inference that takes LEAST_MS, it fails.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.environment import machine_name
from benchmarks.measure.messages import Subject, Taken, Turn
from benchmarks.measure.processes import Worker
from benchmarks.rows import RESULTS, write_rows
from benchmarks.serving.command import run_command
from benchmarks.serving.noop import NAME, noop_bundle
from lct_deploy.errors import LctDeployError
from lct_deploy.progress import track

KNOWN_MS = (0.0, 0.5, 2.0)
LEAST_MS = 0.5  # less than the shipped network takes on any processor so far
LIMIT = 0.01


@dataclass(frozen=True, kw_only=True)
class Row:
    """One turn: `within` is what an inference is recorded to take over `known_ms`, `between` what is not
    recorded of any; `share` is both beside `known_ms`.
    """

    known_ms: float
    round: int
    inferences: int
    within_us: float
    between_us: float
    share: float | None


def main(
    rounds: Annotated[int, typer.Option(min=1)] = 15,
    seconds: Annotated[float, typer.Option(min=0.01, help="Of a turn.")] = 0.5,
    output: Annotated[
        Path | None, typer.Option(help="Default: benchmarks/results/harness-MACHINE.csv.")
    ] = None,
) -> None:
    """Measure the harness by times that are known."""
    with tempfile.TemporaryDirectory(prefix="lct-harness.") as directory:
        bundle = noop_bundle(Path(directory) / NAME).path
        jobs = [(known, number) for known in KNOWN_MS for number in range(rounds)]
        rows = list(_measure(bundle, track(jobs, "measuring", total=len(jobs)), seconds))
    write_rows(output or RESULTS / f"harness-{machine_name()}.csv", [asdict(row) for row in rows])
    for known in KNOWN_MS:
        print(f"{known:6g} ms: {added_us(rows, known):6.2f} µs an inference")
    if (share := worst_share(rows)) >= LIMIT:
        raise LctDeployError(f"the harness adds {share:.2%} to an inference of {LEAST_MS} ms or more")


def added_us(rows: Sequence[Row], known_ms: float) -> float:
    """Microseconds an inference, at the median of the rounds."""
    return float(np.median([row.within_us + row.between_us for row in rows if row.known_ms == known_ms]))


def worst_share(rows: Sequence[Row]) -> float:
    """Of the inferences that count, the largest median share."""
    counted = {row.known_ms for row in rows if row.known_ms >= LEAST_MS}
    return max(added_us(rows, known) / (1e3 * known) for known in counted)


def _measure(bundle: Path, jobs: Iterator[tuple[float, int]], seconds: float) -> Iterator[Row]:
    for known, number in jobs:
        with Worker(Subject(kind="known time", bundle=bundle, known_ms=known, threads=1)) as worker:
            worker.opened()
            worker.take(Turn(batch=1, seconds=seconds / 10))
            yield row_of(known, number, worker.take(Turn(batch=1, seconds=seconds)))


def row_of(known_ms: float, number: int, taken: Taken) -> Row:
    within = 1e3 * (float(np.median(taken.milliseconds)) - known_ms)
    between = 1e3 * (1e3 * taken.seconds - sum(taken.milliseconds)) / len(taken.milliseconds)
    return Row(
        known_ms=known_ms,
        round=number,
        inferences=len(taken.milliseconds),
        within_us=round(within, 3),
        between_us=round(between, 3),
        share=round((within + between) / (1e3 * known_ms), 6) if known_ms else None,
    )


if __name__ == "__main__":
    run_command(main)
