"""In short: how far from the floor, from the best other runtime and server, and what int8 costs."""

from collections.abc import Iterable, Iterator

from benchmarks.report import accuracy, attention, peers, serving
from benchmarks.report.section import Section
from benchmarks.report.sources import Results
from benchmarks.report.tables import digits, place, ratio, table

NETWORK = "lct_resnet50"
_HEADER = (
    "LCT-ResNet50, latency",
    "over plain ResNet-50",
    "over its arithmetic's floor",
    "over the best other runtime",
)


def headline(results: Results, document: str) -> str:
    """The table of networks by machine, and the server beside others; links lead into `document`."""
    lines = list(_network_lines(results, document))
    shown = table(_HEADER, lines) if lines else f"{_link(attention.SECTION, document)}: not measured yet.\n"
    return f"{shown}\n{_listed(_comparisons(results, document))}"


def in_short(results: Results) -> str:
    """The same at the head of the document, and a line for each other question."""
    questions = [*_overheads(results, ""), *_accuracies(results, "")]
    return headline(results, "") + _listed(questions)


def _listed(lines: Iterable[str]) -> str:
    return "".join(f"- {line}\n" for line in lines)


def _network_lines(results: Results, document: str) -> Iterator[list[str]]:
    """Of every machine, precision and batch in which LCT-ResNet50 was measured in any way."""
    for machine in results.machines:
        alone = results.at(attention.SECTION.kind, machine)
        others = results.at(peers.SECTION.kind, machine)
        overheads = attention.overheads(alone) if alone else {}
        beside = {
            (case.precision, case.batch): case.best
            for case in (peers.cases(others) if others else ())
            if case.network == NETWORK
        }
        measured = {*overheads, *(group for group, best in beside.items() if best)}
        for precision, batch in sorted(measured, key=lambda group: place(*group)):
            overhead, best = overheads.get((precision, batch)), beside.get((precision, batch))
            yield [
                f"`{machine}`, {precision}, batch {batch}",
                ratio(overhead.over_plain) if overhead else _absent(attention.SECTION, document),
                digits(overhead.over_floor) if overhead and overhead.floor else "not measured",
                str(best) if best else _absent(peers.SECTION, document),
            ]


def _comparisons(results: Results, document: str) -> Iterator[str]:
    link = _link(serving.COMPARISON, document)
    sources = results.of(serving.COMPARISON.kind)
    for source in sources:
        best = serving.best_other(source)
        if best is None or best.ours_over_it is None:
            yield f"{link} ({source.where}): no other server, or not ours, was measured."
        else:
            times = ratio(best.ours_over_it)
            yield f"{link} ({source.where}): {times} times the answers a second of {best.server}."
    if not sources:
        yield f"{link}: not measured yet."


def _overheads(results: Results, document: str) -> Iterator[str]:
    """Of each run, what it measured."""
    link = _link(serving.OVERHEAD, document)
    sources = results.of(serving.OVERHEAD.kind)
    for source in sources:
        for (bundle,), rows in source.groups("bundle").items():
            found = {what: serving.beside([row for row in rows if row["what"] == what]) for what in _SAID}
            said = [_SAID[what].format(ratio(value)) for what, value in found.items() if value is not None]
            if said:
                yield f"{link} ({source.where}; {bundle}): {'; '.join(said)}."
    if not sources:
        yield f"{link}: not measured yet."


_SAID = {
    "throughput": "over HTTP {} of the images a second that decoding and inference reach in one process",
    "one": "one caller waits {} times as long as these two take",
}


def _accuracies(results: Results, document: str) -> Iterator[str]:
    """Of int8, by checkpoint and runtime."""
    link = _link(accuracy.ACCURACY, document)
    sources = results.of(accuracy.ACCURACY.kind)
    for source in sources:
        for (checkpoint, size), rows in source.groups("checkpoint", "size").items():
            drops = [
                f"{float(row['drop']):+.2f} points in int8 for {row['target']}"
                + (" (over the limit)" if accuracy.over_limit(row) else "")
                for row in rows
                if row["precision"] == "int8"
            ]
            if drops:
                yield f"{link} ({checkpoint}, {size} pixels): top-1 drops by {', '.join(drops)}."
    if not sources:
        yield f"{link}: not measured yet."


def _absent(section: Section, document: str) -> str:
    return f"[not measured]({document}#{section.anchor})"


def _link(section: Section, document: str) -> str:
    return f"[{section.title}]({document}#{section.anchor})"
