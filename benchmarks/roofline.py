"""What this machine can do at most, as far as anybody's kernels get there: `python -m benchmarks.roofline`.

    fp32, int8     multiplications and additions a second, of convolutions of ResNet-50 (benchmarks.floors)
    memory         bytes a second, of arrays far larger than the caches: copied, and a + s·b (STREAM's triad)

The best of all rounds counts: a peak is what is possible, not what is usual. Rows go to
benchmarks/results/roofline-MACHINE.csv.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Annotated

import torch
import typer

from benchmarks.environment import machine_name
from benchmarks.floors import floors
from benchmarks.rows import RESULTS, write_rows
from benchmarks.serving.command import run_command
from lct_deploy.cores import available_cores
from lct_deploy.progress import track

ELEMENTS = 1 << 26  # float32, 256 MiB an array
BATCH = 8


@dataclass(frozen=True, kw_only=True)
class Work:
    """Something to time, and the operations or bytes of one run."""

    what: str
    detail: str
    run: Callable[[], object]
    amount: float
    unit: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """The best rate of one kind of work, in thousands of millions a second."""

    what: str
    detail: str
    threads: int
    rounds: int
    best: float
    unit: str


def main(rounds: Annotated[int, typer.Option(min=1)] = 9) -> None:
    """Measure the peaks of this machine."""
    threads = available_cores()
    torch.set_num_threads(threads)
    works = [*_arithmetic(threads), *_memory()]
    rows = [
        Row(
            what=work.what,
            detail=work.detail,
            threads=threads,
            rounds=rounds,
            best=round(work.amount / _best_seconds(work, rounds) / 1e9, 2),
            unit=work.unit,
        )
        for work in track(works, "measuring", total=len(works))
    ]
    write_rows(RESULTS / f"roofline-{machine_name()}.csv", [asdict(row) for row in rows])
    for row in rows:
        print(f"{row.what:8} {row.best:10.1f} {row.unit:8} {row.detail}")


def _arithmetic(threads: int) -> Iterator[Work]:
    for precision in ("fp32", "int8"):
        for floor in floors(precision, BATCH, threads):
            yield Work(
                what=precision, detail=floor.name, run=floor.run, amount=floor.operations, unit="Gop/s"
            )


def _memory() -> Iterator[Work]:
    a, b, c = (torch.ones(ELEMENTS) for _ in range(3))
    size = ELEMENTS * a.element_size()
    yield Work(what="memory", detail="copy", run=lambda: c.copy_(a), amount=2 * size, unit="GB/s")
    triad = Work(
        what="memory",
        detail="triad",
        run=lambda: torch.add(a, b, alpha=3.0, out=c),
        amount=3 * size,
        unit="GB/s",
    )
    yield triad


def _best_seconds(work: Work, rounds: int) -> float:
    work.run()
    return min(_seconds(work.run) for _ in range(rounds))


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    run_command(main)
