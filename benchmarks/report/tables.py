"""Tables in Markdown, and numbers in them."""

import re
from collections.abc import Iterable, Sequence

from benchmarks.quartiles import Quartiles
from benchmarks.report.sources import Rows, Source, numbers

ABSENT = "–"
_PRECISIONS = ("fp32", "bf16", "fp16", "int8")
_NUMBERS = re.compile(r"(?:[-+*–\d.,%!()\[\]/ ]|to|ms|Gop/s|GB/s)*")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The first column names its line; of the others those that hold numbers alone lie to the right."""
    lines = list(rows)
    right = [all(_NUMBERS.fullmatch(row[index]) for row in lines) for index in range(1, len(header))]
    rule = "|".join(["---", *("---:" if number else "---" for number in right)])
    return "\n".join([_line(header), f"|{rule}|", *map(_line, lines)]) + "\n"


def place(precision: str, batch: str) -> tuple[int, int]:
    """For sorting: readers compare lines that follow each other, in whatever order they were measured."""
    return _PRECISIONS.index(precision), int(batch)


def ratio(value: Quartiles | None, *, mark: str = "") -> str:
    """Median and quartiles, such as **1.009** [0.971, 1.023]."""
    if value is None:
        return ABSENT
    return f"**{value.median:.3f}**{mark} [{value.first:.3f}, {value.third:.3f}]"


def spread(value: Quartiles | None) -> str:
    """The same of a figure that is no ratio, to three digits."""
    if value is None:
        return ABSENT
    return f"{digits(value.median)} [{digits(value.first)}, {digits(value.third)}]"


def digits(value: float | None, count: int = 3) -> str:
    """A number to so many digits, or to all that stand before its point."""
    if value is None:
        return ABSENT
    if abs(value) >= 10 ** (count - 1):
        return f"{value:,.0f}"
    return f"{value:#.{count}g}".rstrip(".")


def rounds_table(source: Source, cases: Sequence[str], column: str, unit: str) -> str:
    """A line for each case: the figure's median and quartiles over the rounds."""

    def line(case: tuple[str, ...], rows: Rows) -> list[str]:
        return [*case, spread(Quartiles.of(numbers(rows, column))), str(len(rows))]

    lines = [line(case, rows) for case, rows in source.groups(*cases).items()]
    return table([*cases, f"{unit} [quartiles]", "rounds"], lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
