"""By how much two runs of a benchmark differ: `python -m benchmarks.repeatability FIRST.csv SECOND.csv`.

Both are files of raw rows of the same program on the same machine. Rows of the same case are taken
together at their median; printed is the second run's figure over the first's, the largest difference first.
With `--output` the two figures of each case go there too, in the place of those of the same benchmark; the
report is made from benchmarks/results/repeatability-MACHINE.csv.
"""

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import typer

from benchmarks.environment import machine_name
from benchmarks.rows import read_rows, replace_rows
from benchmarks.serving.command import run_command
from lct_deploy.errors import UsageError

MACHINE = ("cpu", "isa", "cores", "gpu")  # columns that have to agree


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What a program measures: the columns that name a case, and those that are compared."""

    case: tuple[str, ...]
    columns: tuple[str, ...]


# A file is of the first whose columns it has.
FIGURES = (
    Figure(
        case=("model", "runtime", "precision", "graph", "batch", "concurrency"),
        columns=("p50_ms", "ratio_median"),
    ),
    Figure(case=("model", "form", "precision", "batch"), columns=("milliseconds",)),
    Figure(case=("runtime", "attention", "precision", "batch"), columns=("host_median_ms",)),
    Figure(case=("form", "stage", "batch", "dtype", "layout"), columns=("times_median_ms",)),
    Figure(case=("arch", "precision", "batch", "part"), columns=("milliseconds",)),
    Figure(case=("dimension", "work"), columns=("milliseconds",)),
    Figure(case=("what", "detail"), columns=("best",)),
    Figure(case=("server", "shape", "loop", "connections"), columns=("throughput",)),
    Figure(case=("width", "height", "loop", "callers", "rate"), columns=("throughput",)),
    Figure(case=("bundle", "what"), columns=("value",)),
    Figure(case=("model", "batch"), columns=("images_per_second",)),
    Figure(case=("figure",), columns=("microseconds",)),
    Figure(case=("client",), columns=("cpu_microseconds",)),
    Figure(case=("known_ms",), columns=("within_us",)),
    Figure(case=("what",), columns=("seconds",)),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A case in both runs."""

    benchmark: str
    figure: str
    case: str
    first: float
    second: float

    @property
    def ratio(self) -> float:
        """The second run's figure over the first's."""
        return self.second / self.first

    @property
    def size(self) -> float:
        """The same for half and for double."""
        return abs(float(np.log(self.ratio)))


def main(
    first: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    second: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    output: Annotated[Path | None, typer.Option(help="Rows of the comparison.")] = None,
) -> None:
    """Compare two runs on the same machine."""
    runs = [_rows(path) for path in (first, second)]
    figure = _figure(runs, first)
    _check_machines(runs)
    name = first.stem.removesuffix(f"-{machine_name()}")
    rows = [row for column in figure.columns for row in _compare(name, figure.case, column, runs)]
    if not rows:
        raise UsageError(f"{first} and {second} have no case in common")
    for column in figure.columns:
        own = [row for row in rows if row.figure == column]
        for row in sorted(own, key=lambda row: row.size, reverse=True):
            print(f"{row.ratio - 1:+8.2%}  {row.case}")
        if own:
            middle, high, most = differences(own)
            print(f"{column} of {len(own)} cases differs by {middle:.2%} at the median, by {high:.2%} at "
                  f"the 90th percentile, by {most:.2%} at most")  # fmt: skip
    if output is not None:
        replace_rows(output, [asdict(row) for row in rows], by=("benchmark",))


def differences(rows: Sequence[Row]) -> tuple[float, float, float]:
    """The median, the 90th percentile and the most; 0.03 is 3 % in either direction."""
    middle, high, most = np.expm1(np.quantile([row.size for row in rows], (0.5, 0.9, 1)))
    return float(middle), float(high), float(most)


def _compare(
    name: str, case: Sequence[str], column: str, runs: Sequence[Sequence[Mapping[str, str]]]
) -> list[Row]:
    before, after = (_medians(rows, case, column) for rows in runs)
    if alone := len(before.keys() ^ after.keys()):
        print(f"{alone} cases are in one of the runs alone, or were not measured in it", file=sys.stderr)
    return [
        Row(benchmark=name, figure=column, case=one, first=before[one], second=after[one])
        for one in before
        if one in after
    ]


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
        if all({*figure.case, *figure.columns} <= rows[0].keys() for rows in runs):
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


def _medians(rows: Sequence[Mapping[str, str]], case: Sequence[str], column: str) -> dict[str, float]:
    """By case; what was not measured is not there."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for row in rows:
        value = float(row[column] or 0)
        if value > 0:
            found[", ".join(row[name] for name in case if row[name])].append(value)
    return {case: median(values) for case, values in found.items()}


if __name__ == "__main__":
    run_command(main)
