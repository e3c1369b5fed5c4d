"""What a machine can do at most, from benchmarks.roofline, and how near networks come to it."""

from collections.abc import Iterator, Mapping

from benchmarks.report import attention, peers
from benchmarks.report.section import Section, Shown
from benchmarks.report.sources import Results, Source, numbers
from benchmarks.report.tables import ABSENT, digits, table
from lct_deploy.architecture import model_config
from lct_deploy.cost import model_cost

MEMORY = "memory"
_BYTES = {"fp32": 4, "int8": 1}  # of an element
_TRANSFERS = 2  # X written by its convolution, and read: what the plain network keeps in registers


def peaks(source: Source) -> dict[str, float]:
    """The best rate of each kind of work: Gop/s, of memory GB/s."""
    return {what: max(numbers(rows, "best")) for (what,), rows in source.groups("what").items()}


def _show(source: Source, results: Results) -> Shown:
    parts = [
        f"{source.told('threads')} threads.\n",
        _peaks(source),
        "Of each kernel, Gop/s:\n",
        _kernels(source),
    ]
    measured = results.at(peers.SECTION.kind, source.machine)
    parts.append(
        _shares(measured, peaks(source)) if measured else "How near networks come: not measured here.\n"
    )
    if beside := results.at(attention.SECTION.kind, source.machine):
        parts.append(_attention(beside, peaks(source)[MEMORY]))
    return Shown(text="\n".join(parts))


def _peaks(source: Source) -> str:
    found = peaks(source)
    lines: list[list[str]] = []
    for (what,), rows in source.groups("what").items():
        best = max(rows, key=lambda row: float(row["best"]))
        balance = found[what] / found[MEMORY] if what != MEMORY and MEMORY in found else None
        lines.append([what, f"{digits(found[what])} {best['unit']}", digits(balance), best["detail"]])
    return table(("", "peak", "operations a byte of memory", "reached by"), lines)


def _kernels(source: Source) -> str:
    """A line a convolution, a column a precision and library."""
    rates = {
        (row["detail"].partition(" ")[2], f"{row['what']} {row['detail'].partition(' ')[0]}"): float(
            row["best"]
        )
        for row in source.rows
        if row["what"] != MEMORY
    }
    columns = list(dict.fromkeys(column for _, column in rates))
    kernels = list(dict.fromkeys(kernel for kernel, _ in rates))
    return table(
        ("", *columns), [[kernel, *(digits(rates.get((kernel, c))) for c in columns)] for kernel in kernels]
    )


def _shares(source: Source, found: dict[str, float]) -> str:
    header = ("", "share of the peak", "Gop/s", "fastest other, share of the peak")
    said = "How near networks come, by the multiply-adds that `lct-deploy models` counts:\n\n"
    return said + table(header, list(_share_lines(source, found)))


def _share_lines(source: Source, found: dict[str, float]) -> Iterator[list[str]]:
    for case in peers.cases(source):
        rates = {name: _rate(case.network, row) for name, row in case.rows.items() if row["p50_ms"]}
        ours = [rate for name, rate in rates.items() if peers.is_ours(name)]
        others = [rate for name, rate in rates.items() if not peers.is_ours(name)]
        if case.precision in found and ours:
            peak = found[case.precision]
            other = f"{max(others) / peak:.0%}" if others else ABSENT
            shown = f"**{max(ours) / peak:.0%}**", digits(max(ours)), other
            yield [f"{case.network}, {case.group}", *shown]


def _rate(arch: str, row: Mapping[str, str]) -> float:
    """Gop/s of an inference: a multiplication and an addition for each multiply-add."""
    cost = model_cost(model_config(arch), image_size=int(row["pixels"]))
    return 2 * cost.multiply_adds * int(row["batch"]) / float(row["p50_ms"]) / 1e6


def _attention(source: Source, bandwidth: float) -> str:
    """What attention adds, beside the time that memory takes for the least that it moves; GB/s."""
    attentive, plain = (model_config(arch) for arch in (attention.LCT, "resnet50"))
    added = model_cost(attentive, image_size=attention.PIXELS) - model_cost(
        plain, image_size=attention.PIXELS
    )
    said = (
        "What attention adds to ResNet-50, beside the least that it moves more than a block without: X, the "
        f"branch's {added.multiply_adds / 1e6:.2f} million elements an image, written and read once more. "
        "Under 100 % they stay in caches:\n\n"
    )
    lines: list[list[str]] = []
    for (precision, batch), one in attention.overheads(source).items():
        moved = added.multiply_adds * _TRANSFERS * _BYTES[precision]
        least = moved / bandwidth / 1e6
        cells = digits(one.added), digits(moved / 1e6), digits(least), f"**{one.added / least:.0%}**"
        lines.append([f"{precision}, batch {batch}", *cells])
    header = ("", "adds, ms an image", "least MB an image", "memory takes, ms", "of that")
    return said + table(header, lines)


SECTION = Section(
    kind="roofline",
    title="What the machine can do at most",
    command="python -m benchmarks.roofline",
    about="Multiplications and additions a second of convolutions of ResNet-50, several in a row, and bytes "
    "a second of arrays far larger than the caches: the best of all rounds, as far as anybody's "
    "kernels get there. Work that does fewer operations a byte than the quotient of the two waits for "
    "memory.",
    show=_show,
    packages=("onnxruntime", "torch"),
)
