"""How the server lives and how it stops: soak, stops and reloads, damaged requests."""

import statistics
from collections import Counter

from benchmarks.report.plots import Curve, curve_plot
from benchmarks.report.section import Section, Shown
from benchmarks.report.sources import Results, Source
from benchmarks.report.tables import digits, table
from benchmarks.rows import parse_rows
from benchmarks.serving import soak, stops


def _show_soak(source: Source, _: Results) -> Shown:
    samples = parse_rows(soak.Sample, source.rows)
    lines = [
        ["memory, last third over first", f"{soak.growth(samples):+.2%}"],
        ["open files, last third beside first", f"{soak.more_files(samples):+.0f}"],
        ["minutes", digits(samples[-1].seconds / 60)],
        ["requests a second", source.told("rate")],
        ["clients saw", source.told("figures")],
    ]
    minutes = [sample.seconds / 60 for sample in samples]
    panels = {"minutes": [Curve(label="", x=minutes, y=[sample.rss_mib for sample in samples])]}
    plots = {"Memory of all processes": curve_plot(panels, "MiB", logarithmic=False)}
    verdict = source.told("verdict")
    said = f"{verdict[0].upper()}{verdict[1:]}." if verdict == soak.HELD else f"**Failed**: {verdict}."
    text = f"{said} Bundle: {source.told('bundle')}.\n\n{table(('', ''), lines)}"
    return Shown(text=text, plots=plots)


def _show_stops(source: Source, _: Results) -> Shown:
    header = (
        "",
        "times",
        "requests lost",
        "unanswered",
        "of requests",
        "median s",
        "longest s",
        "ended with",
        "other answers",
    )
    found = parse_rows(stops.Row, source.rows)
    lines = [
        _stop_line(what, [row for row in found if row.what == what])
        for what in dict.fromkeys(r.what for r in found)
    ]
    wrong = stops.verdict(found)
    said = f"**Failed**: {'; '.join(wrong)}.\n" if wrong else "Nothing was lost.\n"
    return Shown(text=f"{said}\n{table(header, lines)}")


def _stop_line(what: str, rows: list[stops.Row]) -> list[str]:
    seconds = [row.seconds for row in rows]
    codes = Counter(row.code for row in rows)
    others = Counter(row.other for row in rows if row.other)
    return [
        what,
        str(len(rows)),
        f"**{sum(row.lost for row in rows)}**",
        str(sum(row.unanswered for row in rows)),
        f"{sum(row.requests for row in rows):,}",
        digits(statistics.median(seconds)),
        digits(max(seconds)),
        ", ".join(f"{code}: {count}" for code, count in codes.items()),
        ", ".join(others) or "none",
    ]


def _show_fuzz(source: Source, _: Results) -> Shown:
    """By kind and status; the mutations are in the rows."""
    statuses = sorted({row["status"] for row in source.rows})
    counts = Counter[tuple[str, str]]()
    for row in source.rows:
        counts[row["kind"], row["status"]] += int(row["count"])
    kinds = list(dict.fromkeys(row["kind"] for row in source.rows))
    lines = [
        [kind, f"{sum(counts[kind, s] for s in statuses):,}", *(f"{counts[kind, s]:,}" for s in statuses)]
        for kind in kinds
    ]
    return Shown(text=table(("", "requests", *statuses), lines))


SOAK = Section(
    kind="serving-soak",
    title="Whether the server stays as it is",
    command="python -m benchmarks.serving.soak BUNDLE --minutes 15 --load 0.8",
    about="Under a share of what it can do: memory may grow by 3 %, no more files may be open, and no "
    "request may get a 5xx or no answer.",
    show=_show_soak,
    packages=("onnxruntime", "fastapi", "uvicorn"),
)
STOPS = Section(
    kind="serving-stops",
    title="What stopping and reloading lose",
    command="python -m benchmarks.serving.stops BUNDLE --stops 100 --reloads 100",
    about="A request is lost where its connection is closed after it was sent and before its answer was "
    "there.",
    show=_show_stops,
    packages=("onnxruntime", "fastapi", "uvicorn"),
)
FUZZ = Section(
    kind="serving_fuzz",
    title="Damaged images and requests",
    command="python -m benchmarks.serving_fuzz URL --images 20000 --bodies 20000",
    about="Answers by status; a 5xx but 503 and 504, or none at all (*lost*), is a failure.",
    show=_show_fuzz,
    packages=("pillow", "fastapi", "uvicorn"),
)
