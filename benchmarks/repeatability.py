"""By how much two runs of a benchmark differ: `python -m benchmarks.repeatability FIRST.csv SECOND.csv`.

Both are files of raw rows of the same program on the same machine. Rows of the same case are taken
together at their median; printed is the second run's figure over the first's, the largest difference first.
"""

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import typer

from benchmarks.rows import read_rows
from benchmarks.serving.command import run_command
from lct_deploy.errors import UsageError

MACHINE = ("cpu", "isa", "cores", "gpu")  # columns that have to agree


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What a program measures: the columns that name a case, and the one that is compared."""

    case: tuple[str, ...]
    column: str


# A file is of the first whose columns it has.
FIGURES = (
    Figure(case=("model", "runtime", "precision", "graph", "batch", "concurrency"), column="p50_ms"),
    Figure(case=("model", "form", "precision", "batch"), column="milliseconds"),
    Figure(case=("runtime", "attention", "precision", "batch"), column="host_median_ms"),
    Figure(case=("form", "stage", "batch", "dtype", "layout"), column="times_median_ms"),
    Figure(case=("arch", "precision", "batch", "part"), column="milliseconds"),
    Figure(case=("dimension", "work"), column="milliseconds"),
    Figure(case=("what", "detail"), column="best"),
    Figure(case=("server", "shape", "loop", "connections"), column="throughput"),
    Figure(case=("width", "height", "loop", "callers", "rate"), column="throughput"),
    Figure(case=("bundle", "what"), column="value"),
    Figure(case=("model", "batch"), column="images_per_second"),
    Figure(case=("figure",), column="microseconds"),
    Figure(case=("client",), column="cpu_microseconds"),
    Figure(case=("known_ms",), column="within_us"),
    Figure(case=("what",), column="seconds"),
)


@dataclass(frozen=True, kw_only=True)
class Change:
    """The second run's figure over the first's."""

    case: str
    ratio: float

    @property
    def size(self) -> float:
        """The same for half and for double."""
        return abs(float(np.log(self.ratio)))

    def __str__(self) -> str:
        return f"{self.ratio - 1:+8.2%}  {self.case}"


def main(
    first: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    second: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
) -> None:
    """Compare two runs on the same machine."""
    runs = [_rows(path) for path in (first, second)]
    figure = _figure(runs, first)
    _check_machines(runs)
    before, after = (_medians(rows, figure) for rows in runs)
    changes = [Change(case=case, ratio=after[case] / before[case]) for case in before if case in after]
    if not changes:
        raise UsageError(f"{first} and {second} have no case in common")
    for change in sorted(changes, key=lambda change: change.size, reverse=True):
        print(change)
    middle, high, most = np.expm1(np.quantile([change.size for change in changes], (0.5, 0.9, 1)))
    print(f"{figure.column} of {len(changes)} cases differs by {middle:.2%} at the median, by {high:.2%} at "
          f"the 90th percentile, by {most:.2%} at most")  # fmt: skip
    if alone := len(before.keys() ^ after.keys()):
        print(f"{alone} cases are in one of the runs alone, or were not measured in it", file=sys.stderr)


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        rows = read_rows(path)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not a file of rows") from error
    if not rows:
        raise UsageError(f"{path}: no rows")
    return rows


def _figure(runs: Sequence[Sequence[Mapping[str, str]]], path: Path) -> Figure:
    """Raises UsageError unless both are files of the same program, and one that times something."""
    for figure in FIGURES:
        if all({*figure.case, figure.column} <= rows[0].keys() for rows in runs):
            return figure
    raise UsageError(
        f"{path}: not rows of two runs of one benchmark",
        hint="give two files that the same program has written, such as results/attention-*.csv",
    )


def _check_machines(runs: Sequence[Sequence[Mapping[str, str]]]) -> None:
    """Raises UsageError for two machines; a load or a commit that is another one is said."""
    (first, *_), (second, *_) = runs
    other = {name for name in first.keys() & second.keys() if first[name] != second[name]}
    if said := [f"{name} {first[name]} and {second[name]}" for name in MACHINE if name in other]:
        raise UsageError(f"the runs are of two machines: {', '.join(said)}")
    for name in ("load", "mhz", "commit"):
        if name in other:
            print(f"{name}: {first[name]}, then {second[name]}", file=sys.stderr)


def _medians(rows: Sequence[Mapping[str, str]], figure: Figure) -> dict[str, float]:
    """By case; what was not measured is not there."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for row in rows:
        value = float(row[figure.column] or 0)
        if value > 0:
            found[", ".join(row[name] for name in figure.case if row[name])].append(value)
    return {case: median(values) for case, values in found.items()}


if __name__ == "__main__":
    run_command(main)
