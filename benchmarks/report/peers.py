"""The same networks in every way to run them, from benchmarks.peers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from benchmarks.quartiles import Quartiles
from benchmarks.report.plots import Dots, ratio_plot
from benchmarks.report.section import Section, Shown
from benchmarks.report.sources import Results, Rows, Source, numbers
from benchmarks.report.tables import ABSENT, digits, ratio, table

OURS = "bundle"
NAMES = {OURS: "lct-deploy"}  # other kinds are called as they are
UNSTABLE = " !"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One network in one precision at one batch; rows by kind."""

    network: str
    precision: str
    batch: str
    rows: Mapping[str, Mapping[str, str]]

    @property
    def group(self) -> str:
        return f"{self.precision}, batch {self.batch}"

    def ratio(self, kind: str) -> Quartiles | None:
        """Over what it was compared with; None of that itself, and of what was not measured."""
        row = self.rows.get(kind, {})
        if not row.get("ratio_median"):
            return None
        first, median, third = (
            float(row[f"ratio_{q}"]) for q in ("first_quartile", "median", "third_quartile")
        )
        return Quartiles(first=first, median=median, third=third)

    @property
    def ours_over_best(self) -> tuple[str, Quartiles] | None:
        """Our latency over that of the fastest other one, and its name; None without both."""
        if not self.rows.get(OURS, {}).get("p50_ms"):
            return None
        others = {kind: found for kind in self.rows if (found := self.ratio(kind)) is not None}
        if not others:
            return None
        name = min(others, key=lambda kind: others[kind].median)
        best = others[name]
        return name, Quartiles(first=1 / best.third, median=1 / best.median, third=1 / best.first)


def cases(source: Source) -> list[Case]:
    """In the order of the rows."""
    found: dict[tuple[str, str, str], Rows] = {}
    for row in source.rows:
        # A failure to open does not know its precision, but the bundle's name does.
        precision = row["precision"] or row["model"].rpartition("-")[2]
        found.setdefault((row["model"], precision, row["batch"]), []).append(row)
    return [
        Case(
            network=next((row["arch"] for row in rows if row["arch"]), model),
            precision=precision,
            batch=batch,
            rows={row["kind"]: row for row in rows},
        )
        for (model, precision, batch), rows in found.items()
    ]


def _show(source: Source, _: Results) -> Shown:
    found = cases(source)
    kinds = list(dict.fromkeys(kind for case in found for kind in case.rows))
    parts = [
        f"{source.told('threads')} threads.\n",
        _latencies(found, kinds),
        *_failures(source.rows),
        "How far answers are from PyTorch's:\n",
        _answers(source),
    ]
    plots = {"Latency over ours": _plot(found, [kind for kind in kinds if kind != OURS])}
    return Shown(text="\n".join(parts), plots=plots)


def _latencies(found: Iterable[Case], kinds: Iterable[str]) -> str:
    header = ["", "", "ours over the best other", *(f"{NAMES.get(kind, kind)}" for kind in kinds)]
    return table(header, [_line(case, kinds) for case in found])


def _line(case: Case, kinds: Iterable[str]) -> list[str]:
    best = case.ours_over_best
    beside = f"{ratio(best[1])} ({best[0]})" if best else ABSENT
    return [case.network, case.group, beside, *(_cell(case, kind) for kind in kinds)]


def _cell(case: Case, kind: str) -> str:
    row = case.rows.get(kind)
    if row is None:
        return ABSENT
    if row["error"]:
        return "failed"
    mark = "" if row["stable"] == "True" else UNSTABLE
    found = case.ratio(kind)
    return ratio(found, mark=mark) if found else f"{digits(float(row['p50_ms']))} ms{mark}"


def _failures(rows: Rows) -> list[str]:
    """Each reason once, with what failed for it."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row["error"]:
            what = f"{NAMES.get(row['kind'], row['kind'])} ({row['model']}, batch {row['batch']})"
            found.setdefault(" ".join(row["error"].split()), []).append(what)
    return [f"Failed: {', '.join(what)}: {why}\n" for why, what in found.items()]


def _answers(source: Source) -> str:
    header = ("", "precision", "max \\|Δlogit\\|", "least share of the same best class", "peak MiB")
    lines: list[list[str]] = []
    for (kind, precision), rows in source.groups("kind", "precision").items():
        if errors := numbers(rows, "golden_error"):
            worst, least = max(errors), min(numbers(rows, "golden_top1"))
            memory = max(numbers(rows, "rss_mib"))
            lines.append([NAMES.get(kind, kind), precision, f"{worst:.2g}", f"{least:.3f}", digits(memory)])
    return table(header, lines)


def _plot(found: Iterable[Case], kinds: list[str]) -> str:
    panels: dict[str, list[Case]] = {}
    for case in found:
        if any(case.ratio(kind) for kind in kinds):
            panels.setdefault(case.group, []).append(case)
    return ratio_plot(
        {
            title: (
                [case.network for case in of_group],
                [Dots(label=kind, values=[case.ratio(kind) for case in of_group]) for kind in kinds],
            )
            for title, of_group in panels.items()
        },
        "latency over that of lct-deploy: right of 1 is slower than ours",
    )


SECTION = Section(
    kind="peers",
    title="Beside other ways to run the same network",
    command="python -m benchmarks.peers install && python -m benchmarks.peers run",
    about="Median latency of one inference over ours in the same round, above 1 is slower than ours; ours "
    "stands in milliseconds. Each runs in a process of its own, by turns, until the rounds agree; `!` "
    "marks what does not agree within 5 %. *onnxruntime* is a plain export, quantised by its own tool "
    "for int8; in bf16, which we do not run on a CPU, ratios are to the first that does.",
    show=_show,
    packages=("onnxruntime", "torch"),
)
