"""By how much two runs of a benchmark on one machine differ."""

from benchmarks.repeatability import Row, differences
from benchmarks.report.section import Section, Shown
from benchmarks.report.sources import Results, Source
from benchmarks.report.tables import table
from benchmarks.rows import parse_rows

CLOSE = 0.03  # what two runs on an idle machine should differ by at most


def _show(source: Source, _: Results) -> Shown:
    header = ("", "figure", "cases", f"within {CLOSE:.0%}", "median", "90th percentile", "most", "of")
    lines = [
        _line(benchmark, figure, parse_rows(Row, rows))
        for (benchmark, figure), rows in source.groups("benchmark", "figure").items()
    ]
    return Shown(text=table(header, lines))


def _line(benchmark: str, figure: str, rows: list[Row]) -> list[str]:
    close = sum(differences([row])[0] <= CLOSE for row in rows)
    worst = max(rows, key=lambda row: row.size)
    told = [f"{value:.1%}" for value in differences(rows)]
    return [benchmark, f"`{figure}`", str(len(rows)), str(close), *told, worst.case]


SECTION = Section(
    kind="repeatability",
    title="How far figures repeat",
    command="python -m benchmarks.repeatability FIRST.csv SECOND.csv --output "
    "benchmarks/results/repeatability-MACHINE.csv",
    about="Two runs of a benchmark, one right after the other: by how much the second run's figures differ "
    "from the first's, in either direction. Ratios are of figures that were measured side by side, "
    "milliseconds are not.",
    show=_show,
)
