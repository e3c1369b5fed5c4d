"""Where the time of an inference in OpenVINO goes, from benchmarks.openvino_layers."""

from collections.abc import Iterator, Mapping

from benchmarks.report import roofline
from benchmarks.report.section import Section, Shown
from benchmarks.report.sources import Results, Rows, Source
from benchmarks.report.tables import ABSENT, digits, table

PLAIN, LCT = "resnet50", "lct_resnet50"
TOTAL = "**all**"


def _show(source: Source, results: Results) -> Shown:
    measured = results.at(roofline.SECTION.kind, source.machine)
    peaks = roofline.peaks(measured) if measured else {}
    parts = [f"{source.told('threads')} threads, 224 pixels.\n"]
    for (precision, batch), rows in source.groups("precision", "batch").items():
        header = ("", "nodes", "plain, ms", "LCT, ms", "LCT, Gop/s", "of the peak")
        parts += [f"{precision}, batch {batch}:\n", table(header, list(_lines(rows, peaks.get(precision))))]
    return Shown(text="\n".join(parts))


def _lines(rows: Rows, peak: float | None) -> Iterator[list[str]]:
    by_arch: dict[str, dict[str, Mapping[str, str]]] = {PLAIN: {}, LCT: {}}
    for row in rows:
        by_arch[row["arch"]][row["part"]] = row
    lct, plain = by_arch[LCT], by_arch[PLAIN]
    for part in dict.fromkeys([*lct, *plain]):
        own, base = lct.get(part), plain.get(part)
        cells = [digits(float(row["milliseconds"])) if row else ABSENT for row in (base, own)]
        nodes = own["nodes"] if own else ABSENT
        yield [part, nodes, *cells, *_rate([own] if own else [], peak)]
    totals = [digits(sum(float(row["milliseconds"]) for row in found.values())) for found in (plain, lct)]
    yield [TOTAL, "", *totals, *_rate(list(lct.values()), peak)]


def _rate(rows: list[Mapping[str, str]], peak: float | None) -> tuple[str, str]:
    """Operations a second, and the share of what a single convolution reaches at best."""
    operations = sum(int(row["operations"]) for row in rows)
    if not operations:
        return ABSENT, ABSENT
    rate = operations / sum(float(row["milliseconds"]) for row in rows) / 1e6
    return digits(rate), f"{rate / peak:.0%}" if peak else ABSENT


SECTION = Section(
    kind="openvino-layers",
    title="Where the time in OpenVINO goes",
    command="python -m benchmarks.openvino_layers",
    about="Medians of what OpenVINO itself measures of its nodes, of plain and LCT-ResNet50 by turns. "
    "*ReduceMean* is the attention's pooling and the network's own, *MVN* its normalisation, *Subgraph* the "
    "gate, and the scale with the addition and the ReLU. The peak is the best rate of a single convolution "
    "([above](#what-the-machine-can-do-at-most)).",
    show=_show,
    packages=("openvino",),
)
