"""The server beside others, and what it adds to the work that it does, from benchmarks.serving."""

from benchmarks.quartiles import Quartiles
from benchmarks.report.plots import Dots, ratio_plot
from benchmarks.report.section import Section, Shown
from benchmarks.report.sources import Results, Rows, Source, numbers
from benchmarks.report.tables import ABSENT, digits, ratio, rounds_table, spread, table
from benchmarks.serving.contenders import COMPILED, OURS
from benchmarks.serving.ranking import Row, Standing, failures, standings

_OWN = (OURS, COMPILED)


def ranking(source: Source) -> list[Standing]:
    """Of a comparison, the one with the most answers a second first."""
    found = standings([Row.of(row) for row in source.rows], OURS)
    return sorted(found, key=lambda one: one.answers, reverse=True)


def best_other(source: Source) -> Standing | None:
    """The peer with the most answers a second."""
    return next((one for one in ranking(source) if one.server not in _OWN), None)


def beside(rows: Rows) -> Quartiles | None:
    """The ratio of each figure to what it was measured beside."""
    return Quartiles.of(float(row["value"]) / float(row["beside"]) for row in rows if row["beside"])


def _show_comparison(source: Source, _: Results) -> Shown:
    found = ranking(source)
    header = ("", "ours over it", "answers/s", "p50 / p99 ms at its own load", "at a common rate")
    lines = [
        [one.server, ratio(one.ours_over_it), digits(one.answers), _latency(one.own), _latency(one.common)]
        for one in found
    ]
    failed = failures([Row.of(row) for row in source.rows])
    text = f"Bundle: {source.told('bundle')}.\n\n{table(header, lines)}"
    if failed:
        text += "\nFailed:\n\n" + "\n".join(f"- {why}" for why in failed) + "\n"
    peers = [one for one in found if one.server not in _OWN and one.ours_over_it is not None]
    if not peers:
        return Shown(text=text)
    dots = [Dots(label="lct-deploy", values=[one.ours_over_it for one in peers])]
    panels = {"closed loops": ([one.server for one in peers], dots)}
    return Shown(text=text, plots={"Answers a second over those of each": ratio_plot(panels, "ours over it")})


def _latency(pair: tuple[float, float] | None) -> str:
    return f"{digits(pair[0])} / {digits(pair[1])}" if pair else ABSENT


def _show_overhead(source: Source, _: Results) -> Shown:
    header = ("", "", "ratio", "served", "beside", "unit", "rounds", "how")
    lines = [
        [
            bundle,
            what,
            ratio(beside(rows)),
            spread(Quartiles.of(numbers(rows, "value"))),
            spread(Quartiles.of(numbers(rows, "beside"))),
            rows[0]["unit"],
            str(len(rows)),
            rows[0]["detail"],
        ]
        for (bundle, what), rows in source.groups("bundle", "what").items()
    ]
    options = source.told("serve")
    said = f"Options of the server: `{options}`.\n\n" if options else ""
    return Shown(text=said + table(header, lines))


def _show_batching(source: Source, _: Results) -> Shown:
    header = ("", "precision", "batch", "images/s over those of batch 1", "images/s", "rounds")
    lines = [
        [
            f"{model} ({arch})",
            precision,
            batch,
            ratio(Quartiles.of(numbers(rows, "times_one"))),
            spread(Quartiles.of(numbers(rows, "images_per_second"))),
            str(len(rows)),
        ]
        for (model, arch, precision, batch), rows in source.groups(
            "model", "arch", "precision", "batch"
        ).items()
    ]
    return Shown(text=table(header, lines))


COMPARISON = Section(
    kind="serving-compare",
    title="The server beside others",
    command="python -m benchmarks.serving.peers install && python -m benchmarks.serving.compare BUNDLE",
    about="Servers of images over one graph, with the same photographs from the same client on the same "
    "cores, started anew for every round; each peer in the better of two shapes "
    "([how](benchmarks-serving.md#beside-other-servers)). *Ours over it* is of answers a second in "
    "the same round: above 1 we answer more.",
    show=_show_comparison,
    packages=("onnxruntime", "fastapi", "uvicorn", "wrk"),
)
OVERHEAD = Section(
    kind="serving-overhead",
    title="What the server adds",
    command="python -m benchmarks.serving.overhead BUNDLE...",
    about="*throughput*: images a second over HTTP beside decoding and inference in one process without it, "
    "in the best of several arrangements of threads; below 1 is lost. *one*: one caller's median "
    "latency beside that of the same work alone; above 1 is added. *poisson*: the 99th percentile "
    "beside the median. *noop*: a network that computes nothing, beside uvicorn with an application that "
    "does nothing. A variant `workersN` is `--serve '--workers N'`.",
    show=_show_overhead,
    packages=("onnxruntime", "fastapi", "uvicorn", "wrk"),
)
BATCHING = Section(
    kind="serving-batching",
    title="Images side by side or one after the other",
    command="python -m benchmarks.serving.batching BUNDLE...",
    about="Images a second of a batch over those of batches of one in the same round: above 1, batching "
    "pays.",
    show=_show_batching,
)
OBSERVING = Section(
    kind="serving-observing",
    title="What observing a request costs",
    command="python -m benchmarks.serving.observing",
    about="Microseconds of the processor, of a request that is counted and logged, and of its line alone.",
    show=lambda source, _: Shown(text=rounds_table(source, ("figure",), "microseconds", "µs")),
    packages=("python-json-logger",),
)
CLIENTS = Section(
    kind="serving-clients",
    title="What a request costs the load generator",
    command="python -m benchmarks.serving.clients",
    about="Microseconds of the processor in the client's process, ours beside the usual ones.",
    show=lambda source, _: Shown(text=rounds_table(source, ("client",), "cpu_microseconds", "µs")),
    packages=(),
)
