"""How cost grows with the work, from benchmarks.scaling."""

from benchmarks.growth import exponent
from benchmarks.report.plots import Curve, curve_plot
from benchmarks.report.section import Section, Shown
from benchmarks.report.sources import Results, Rows, Source, numbers
from benchmarks.report.tables import ABSENT, digits, table

UNITS = {
    "batch": "images at once",
    "resolution": "pixels of an image",
    "depth": "multiply-adds",
    "callers": "callers at once",
    "image": "pixels of a file",
}


def _show(source: Source, _: Results) -> Shown:
    dimensions = {name: rows for (name,), rows in source.groups("dimension").items()}
    parts = [
        "Exponents:\n",
        _exponents(dimensions),
        "Points; `!` marks what varied too much:\n",
        _points(source),
    ]
    panels = {UNITS[name]: [_curve(rows)] for name, rows in dimensions.items()}
    plots = {"Cost over work": curve_plot(panels, "milliseconds, median", logarithmic=True)}
    return Shown(text="\n".join(parts), plots=plots)


def _exponents(dimensions: dict[str, Rows]) -> str:
    header = ("", "work", "from", "to", "cost grows by", "exponent", "in the last step")
    return table(header, [_exponent_line(name, rows) for name, rows in dimensions.items()])


def _exponent_line(name: str, rows: Rows) -> list[str]:
    work, cost = (numbers(rows, column) for column in ("work", "milliseconds"))
    whole, last = ABSENT, ABSENT
    if len(rows) > 1:
        whole, last = f"**{exponent(work, cost):.2f}**", f"{exponent(work[-2:], cost[-2:]):.2f}"
    ends = [f"{end:,.0f}" for end in (work[0], work[-1])]
    return [name, UNITS[name], *ends, f"{cost[-1] / cost[0]:.2f}", whole, last]


def _points(source: Source) -> str:
    header = ("", "work", "ms", "a second")
    return table(
        header,
        [
            [
                row["dimension"],
                f"{float(row['work']):,.0f}",
                digits(float(row["milliseconds"])) + ("" if row["stable"] == "True" else " !"),
                digits(float(row["per_second"])),
            ]
            for row in source.rows
        ],
    )


def _curve(rows: Rows) -> Curve:
    return Curve(label="", x=numbers(rows, "work"), y=numbers(rows, "milliseconds"))


SECTION = Section(
    kind="scaling",
    title="How cost grows",
    command="python -m benchmarks.scaling",
    about="Milliseconds at the median, of an inference of LCT-ResNet50 (*batch*, *resolution*), of "
    "LCT-ResNets of 18 to 152 layers (*depth*), and of a request to a server of the shipped network "
    "(*callers*, *image*). The exponent is the slope of a line through the logarithms of work and "
    "cost: 1 is proportional, below it a fixed part is spread over more work, above it cost outgrows "
    "the work.",
    show=_show,
)
