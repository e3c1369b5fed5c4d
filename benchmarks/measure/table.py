"""Rows as a table for people, which fills while they are measured."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Group
from rich.live import Live
from rich.table import Table

from benchmarks.measure.results import Row
from lct_deploy.progress import progress_bar, stderr

_NUMBERS = ("batch", "at once", "p50 ms", "p99 ms", "images/s", "varies", "ratio [quartiles]", "MiB")


def table(rows: Sequence[Row]) -> Table:
    """A line a row; what varies too much to be believed is marked with !, and what failed says so."""
    made = Table(box=None, pad_edge=False)
    for name in ("model", "runtime", "precision", "graph"):
        made.add_column(name)
    for name in _NUMBERS:
        made.add_column(name, justify="right")
    for row in rows:
        made.add_row(row.model, row.runtime, row.precision, row.graph, *_cells(row))
    return made


def _cells(row: Row) -> list[str]:
    load = [str(row.batch), str(row.concurrency)]
    if row.latency is None:
        return [*load, "failed"]
    return [
        *load,
        f"{row.latency.p50:.2f}",
        f"{row.latency.p99:.2f}",
        f"{row.images_per_second:.1f}",
        f"{100 * (row.variation or 0):.1f} %{'' if row.stable else ' !'}",
        _ratio(row),
        f"{row.rss_mib:.0f}",
    ]


def _ratio(row: Row) -> str:
    if row.ratio is None:
        return ""
    return f"{row.ratio.median:.3f} [{row.ratio.first_quartile:.3f}, {row.ratio.third_quartile:.3f}]"


class Display:
    """The table so far with a bar below it, on a terminal; a context manager that takes both away again."""

    def __init__(self, total: int) -> None:
        self._rows: list[Row] = []
        self._bar = progress_bar()
        self._task = self._bar.add_task("rounds, at most", total=total, status="")
        self._live = Live(self._shown(), console=stderr, transient=True)

    def __enter__(self) -> Self:
        if stderr.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def advance(self, status: str) -> None:
        self._bar.update(self._task, advance=1, status=status)

    def add(self, rows: Sequence[Row], *, completed: int) -> None:
        """Rows that are final, and the rounds that they stand for."""
        self._rows += rows
        self._bar.update(self._task, completed=completed)
        self._live.update(self._shown())

    def _shown(self) -> Group:
        return Group(table(self._rows), self._bar)
