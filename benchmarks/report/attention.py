"""What attention costs on the CPU, from benchmarks.attention.

The overhead ratio is the median of latency(model) / latency(plain network) over pairs of inferences that
were run one right after the other.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.quartiles import Quartiles
from benchmarks.report.plots import Dots, ratio_plot
from benchmarks.report.section import Section, Shown
from benchmarks.report.sources import Results, Source
from benchmarks.report.tables import ABSENT, digits, place, ratio, table

MODELS = {"lct_resnet50": "LCT", "se_resnet50": "SE"}
LCT = "lct_resnet50"
FORMS = ("default", "portable", "onnxruntime", "stock", "library", "torch eager", "torch compile")
BEST = ("library", "stock")  # the first that was measured
FLOOR = "floor"
RESAMPLES = 2000

Floats = NDArray[np.float64]
Group = tuple[str, str]  # precision, batch
PIXELS = 224  # of a side


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Milliseconds an image, and the plain network's beside each; floors have no second."""

    milliseconds: Floats
    base: Floats

    @property
    def ratios(self) -> Floats:
        return self.milliseconds / self.base

    @property
    def interval(self) -> str:
        """Where the median ratio lies with 90 % confidence (bootstrapped)."""
        resampled = np.random.default_rng(0).choice(self.ratios, (RESAMPLES, len(self.ratios)))
        low, high = np.quantile(np.median(resampled, axis=1), (0.05, 0.95))
        return f"({low:.3f} to {high:.3f})"


Series = Mapping[tuple[str, ...], Pairs]  # by model and form


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """Of LCT in its best form: over the plain network, and over the arithmetic's floor where it is known."""

    over_plain: Quartiles
    milliseconds: float  # an image
    plain: float
    added: float  # milliseconds an image
    floor: float | None
    floor_of: str

    @property
    def over_floor(self) -> float | None:
        return self.milliseconds / self.floor if self.floor else None


def overheads(source: Source) -> dict[Group, Overhead]:
    """By precision and batch, of those in which LCT was measured in one of its best forms."""
    found = {group: _overhead(series) for group, series in groups(source).items()}
    return {group: overhead for group, overhead in found.items() if overhead is not None}


def _overhead(series: Series) -> Overhead | None:
    best = next((series[LCT, form] for form in BEST if (LCT, form) in series), None)
    over_plain = Quartiles.of(best.ratios) if best else None
    if best is None or over_plain is None:
        return None
    floors = [
        (float(np.median(pairs.milliseconds)), form)
        for (model, form), pairs in series.items()
        if model == FLOOR
    ]
    floor, floor_of = min(floors, default=(None, "not measured"))
    return Overhead(
        over_plain=over_plain,
        milliseconds=float(np.median(best.milliseconds)),
        plain=float(np.median(best.base)),
        added=float(np.median(best.milliseconds - best.base)),
        floor=floor,
        floor_of=floor_of,
    )


def groups(source: Source) -> Mapping[Group, Series]:
    """Milliseconds an image by precision and batch, then by model and form."""
    found: dict[Group, dict[tuple[str, ...], Pairs]] = {}
    for (precision, batch, model, form), rows in source.groups("precision", "batch", "model", "form").items():
        own, base = (
            np.array([float(row[column] or "nan") for row in rows]) / int(batch)
            for column in ("milliseconds", "base_milliseconds")
        )
        found.setdefault((precision, batch), {})[model, form] = Pairs(milliseconds=own, base=base)
    return {group: found[group] for group in sorted(found, key=lambda group: place(*group))}


def _show(source: Source, _: Results) -> Shown:
    found = groups(source)
    text = f"{source.told('threads')} threads, {PIXELS} pixels.\n\n{_absolutes(overheads(source))}\n"
    return Shown(text=text + _forms(found), plots={"Overhead of each form": _plot(found)})


def _absolutes(found: Mapping[Group, Overhead]) -> str:
    header = (
        "",
        "LCT over plain",
        "LCT over floor",
        "LCT ms/image",
        "plain",
        "floor",
        "floor of",
        "int8 speed-up",
    )
    lines: list[list[str]] = []
    for (precision, batch), one in found.items():
        fp32 = found.get(("fp32", batch))
        speed_up = fp32.milliseconds / one.milliseconds if fp32 and precision == "int8" else None
        times = [digits(value) for value in (one.over_floor, one.milliseconds, one.plain, one.floor)]
        lines.append(
            [f"{precision}, batch {batch}", ratio(one.over_plain), *times, one.floor_of, digits(speed_up)]
        )
    return table(header, lines)


def _forms(found: Mapping[Group, Series]) -> str:
    header = ["", "form"]
    for name in MODELS.values():
        header += [f"{name} over plain (90 % interval of the median) [quartiles]", f"{name} ms/image"]
    lines = [
        [
            f"{precision}, batch {batch}",
            form,
            *(cell for model in MODELS for cell in cells(series, model, form)),
        ]
        for (precision, batch), series in found.items()
        for form in FORMS
        if any((model, form) in series for model in MODELS)
    ]
    return table(header, lines)


def cells(series: Series, model: str, form: str) -> tuple[str, str]:
    """The overhead with its interval and quartiles, and the milliseconds."""
    if (model, form) not in series:
        return ABSENT, ABSENT
    pairs = series[model, form]
    overhead = ratio(Quartiles.of(pairs.ratios), mark=f" {pairs.interval}")
    return overhead, digits(float(np.median(pairs.milliseconds)))


def _plot(found: Mapping[Group, Series]) -> str:
    panels: dict[str, tuple[list[str], list[Dots]]] = {}
    for (precision, batch), series in found.items():
        forms = [form for form in FORMS if any((model, form) in series for model in MODELS)]
        dots = [
            Dots(
                label=label,
                values=[
                    Quartiles.of(series[model, form].ratios) if (model, form) in series else None
                    for form in forms
                ],
            )
            for model, label in MODELS.items()
        ]
        panels[f"{precision}, batch {batch}"] = forms, dots
    return ratio_plot(panels, "latency over that of the plain network")


SECTION = Section(
    kind="attention",
    title="What attention costs on the CPU",
    command="python -m benchmarks.attention",
    about="Latency over that of the plain ResNet-50 in the same runtime and precision, measured one right "
    "after the other; 1 is attention for free. *default* is a plain export, *portable* and "
    "*onnxruntime* are a bundle's graphs, *stock* and *library* what `compile` makes without and with "
    "the op library. The floor is the network's arithmetic at the best rate that a single convolution "
    "reached in the same run.",
    show=_show,
    packages=("onnxruntime", "torch"),
)
