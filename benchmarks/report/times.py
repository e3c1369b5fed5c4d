"""The times that a user waits for, and what the harness itself takes."""

from benchmarks.quartiles import Quartiles
from benchmarks.report.section import Section, Shown
from benchmarks.report.sources import Results, Rows, Source, numbers
from benchmarks.report.tables import ABSENT, digits, spread, table


def _show_waits(source: Source, _: Results) -> Shown:
    lines = [
        [what, spread(Quartiles.of(numbers(rows, "seconds"))), _peak(rows), str(len(rows))]
        for (what,), rows in source.groups("what").items()
    ]
    return Shown(text=table(("", "seconds [quartiles]", "peak MiB", "runs"), lines))


def _peak(rows: Rows) -> str:
    """0 is not measured."""
    return digits(max(numbers(rows, "peak_mib")) or None)


def _show_harness(source: Source, _: Results) -> Shown:
    lines = [
        [
            f"{float(known):g} ms",
            _share(rows),
            spread(_added(rows)),
            f"{sum(numbers(rows, 'inferences')):,.0f}",
        ]
        for (known,), rows in source.groups("known_ms").items()
    ]
    return Shown(text=table(("an inference of", "added share", "added µs [quartiles]", "inferences"), lines))


def _added(rows: Rows) -> Quartiles | None:
    return Quartiles.of(float(row["within_us"]) + float(row["between_us"]) for row in rows)


def _share(rows: Rows) -> str:
    share = Quartiles.of(numbers(rows, "share"))
    return f"**{share.median:.2%}** [{share.first:.2%}, {share.third:.2%}]" if share else ABSENT


WAITS = Section(
    kind="spine",
    title="What a user waits for",
    command="python -m benchmarks.spine",
    about="Each in a fresh process. An export includes its proof against PyTorch.",
    show=_show_waits,
    packages=("onnxruntime", "torch", "onnx"),
)
HARNESS = Section(
    kind="harness",
    title="What the harness adds to what it measures",
    command="python -m benchmarks.harness",
    about="A worker is busy for a known time in the place of a network: what it records beyond that, and "
    "what lies between two inferences. It fails at 1 % of an inference of half a millisecond.",
    show=_show_harness,
    packages=("python", "numpy"),
)
