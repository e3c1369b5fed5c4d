"""The same networks in every way to run them, from benchmarks.peers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from benchmarks.quartiles import Quartiles
from benchmarks.report.plots import Dots, ratio_plot
from benchmarks.report.section import Section, Shown
from benchmarks.report.sources import Results, Rows, Source, numbers
from benchmarks.report.tables import ABSENT, digits, place, ratio, table

OURS = "lct-deploy"
UNSTABLE = " !"
_BASE = Quartiles(first=1, median=1, third=1)


@dataclass(frozen=True, kw_only=True)
class Best:
    """The latency of our fastest way over that of the fastest other one; both by their names."""

    ours: str
    other: str
    ratio: Quartiles

    def __str__(self) -> str:
        return f"{ratio(self.ratio)} ({self.ours} / {self.other})"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One network in one precision at one batch; rows by the names of who ran it."""

    network: str
    precision: str
    batch: str
    rows: Mapping[str, Mapping[str, str]]

    @property
    def group(self) -> str:
        return f"{self.precision}, batch {self.batch}"

    def ratio(self, name: str) -> Quartiles | None:
        """Over what it was compared with; None of that itself, and of what was not measured."""
        row = self.rows.get(name, {})
        if not row.get("ratio_median"):
            return None
        first, median, third = (
            float(row[f"ratio_{q}"]) for q in ("first_quartile", "median", "third_quartile")
        )
        return Quartiles(first=first, median=median, third=third)

    @property
    def best(self) -> Best | None:
        """None where none of ours, or no other, was measured."""
        found = {name: self.ratio(name) or _BASE for name, row in self.rows.items() if row["p50_ms"]}
        ours, others = ([name for name in found if is_ours(name) is own] for own in (True, False))
        if not ours or not others:
            return None
        own, other = (min(side, key=lambda name: found[name].median) for side in (ours, others))
        return Best(ours=own, other=other, ratio=found[own].over(found[other]))


def is_ours(name: str) -> bool:
    return name.startswith(OURS)


def cases(source: Source) -> list[Case]:
    """By network, precision and batch."""
    found = [
        Case(network=arch, precision=precision, batch=batch, rows={_name(row): row for row in rows})
        for (arch, precision, batch), rows in source.groups("arch", "precision", "batch").items()
    ]
    return sorted(found, key=lambda case: (case.network, place(case.precision, case.batch)))


def _name(row: Mapping[str, str]) -> str:
    """Ours go by the runtime, without its version; others are called as they are."""
    return f"{OURS} {row['runtime'].split()[0]}" if row["kind"] == "bundle" else row["kind"]


def _show(source: Source, _: Results) -> Shown:
    found = cases(source)
    names = list(dict.fromkeys(name for case in found for name in case.rows))
    parts = [
        f"{source.told('threads')} threads.\n",
        _latencies(found, names),
        *_failures(source.rows),
        "How far answers are from PyTorch's:\n",
        _answers(source),
    ]
    plots = {"Latency over ours": _plot(found, names)}
    return Shown(text="\n".join(parts), plots=plots)


def _latencies(found: Iterable[Case], names: Iterable[str]) -> str:
    return table(["", "", "our best over the best other", *names], [_line(case, names) for case in found])


def _line(case: Case, names: Iterable[str]) -> list[str]:
    return [case.network, case.group, str(case.best or ABSENT), *(_cell(case, name) for name in names)]


def _cell(case: Case, name: str) -> str:
    row = case.rows.get(name)
    if row is None:
        return ABSENT
    if row["error"]:
        return "failed"
    mark = "" if row["stable"] == "True" else UNSTABLE
    found = case.ratio(name)
    return ratio(found, mark=mark) if found else f"{digits(float(row['p50_ms']))} ms{mark}"


def _failures(rows: Rows) -> list[str]:
    """Each reason once, with what failed for it."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row["error"]:
            what = f"{_name(row)} ({row['arch']}, {row['precision']}, batch {row['batch']})"
            found.setdefault(" ".join(row["error"].split()), []).append(what)
    return [f"Failed: {', '.join(what)}: {why}\n" for why, what in found.items()]


def _answers(source: Source) -> str:
    header = ("", "precision", "max \\|Δlogit\\|", "least share of the same best class", "peak MiB")
    groups: dict[tuple[str, str], Rows] = {}
    for row in source.rows:
        if row["golden_error"]:
            groups.setdefault((_name(row), row["precision"]), []).append(row)
    lines = [
        [
            *group,
            f"{max(numbers(rows, 'golden_error')):.2g}",
            f"{min(numbers(rows, 'golden_top1')):.3f}",
            digits(max(numbers(rows, "rss_mib"))),
        ]
        for group, rows in groups.items()
    ]
    return table(header, lines)


def _plot(found: Iterable[Case], names: Iterable[str]) -> str:
    panels: dict[str, list[Case]] = {}
    for case in found:
        if any(case.ratio(name) for name in names):
            panels.setdefault(case.group, []).append(case)
    compared = [name for name in names if any(case.ratio(name) for case in found)]
    return ratio_plot(
        {
            title: (
                [case.network for case in of_group],
                [Dots(label=name, values=[case.ratio(name) for case in of_group]) for name in compared],
            )
            for title, of_group in panels.items()
        },
        "latency over that of lct-deploy's first: right of 1 is slower",
    )


SECTION = Section(
    kind="peers",
    title="Beside other ways to run the same network",
    command="python -m benchmarks.peers install && python -m benchmarks.peers run",
    about="Median latency of one inference over ours in the same round, above 1 is slower than ours; ours "
    "stands in milliseconds. Each runs in a process of its own, by turns, until the rounds agree; `!` "
    "marks what does not agree within 5 %. *onnxruntime* is a plain export, quantised by its own tool "
    "for int8; *openvino* our fp32 graph with LCT spelled out, which *nncf* has quantised as it does by "
    "default; *onnxruntime openvino* our graph for onnxruntime, spelled out, in that of OpenVINO.",
    show=_show,
    packages=("onnxruntime", "torch"),
)
