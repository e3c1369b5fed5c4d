"""Tables and plots of benchmarks/results/attention-MACHINE.csv: docs/attention.md and its SVG files.

The overhead ratio is the median of latency(model) / latency(plain network) over pairs of inferences that
were run one right after the other. Beside it stand the 90 % interval of that median (bootstrapped) and the
quartiles of the pairs.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from numpy.typing import NDArray

from benchmarks.rows import RESULTS, read_rows
from lct_deploy.atomic import atomic_file

SOURCES = "attention-*.csv"
DOCS = Path(__file__).parent.parent / "docs"
MODELS = {"lct_resnet50": "LCT", "se_resnet50": "SE"}
FORMS = ("default", "portable", "onnxruntime", "stock", "library", "torch eager", "torch compile")
BEST = "library"
FLOOR = "floor"
COLOURS = ("#3b82f6", "#f59e0b")
RESAMPLES = 2000
COMMAND = "python -m benchmarks.attention && python -m benchmarks.attention_report"

Floats = NDArray[np.float64]
Group = tuple[str, str]  # precision, batch


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Milliseconds of a model in a form, and of the plain network beside it; floors have no second."""

    milliseconds: Floats
    base: Floats


Series = Mapping[tuple[str, str], Pairs]  # by model and form


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A paired ratio: its median, where that lies with 90 % confidence, and the quartiles."""

    median: float
    interval: tuple[float, float]
    quartiles: tuple[float, float]

    @classmethod
    def of(cls, pairs: Pairs) -> "Ratio":
        ratios = pairs.milliseconds / pairs.base
        resampled = np.random.default_rng(0).choice(ratios, (RESAMPLES, len(ratios)))
        low, high = np.quantile(np.median(resampled, axis=1), (0.05, 0.95))
        first, third = np.quantile(ratios, (0.25, 0.75))
        return cls(
            median=float(np.median(ratios)),
            interval=(float(low), float(high)),
            quartiles=(float(first), float(third)),
        )

    def __str__(self) -> str:
        low, high = self.interval
        first, third = self.quartiles
        return f"**{self.median:.3f}** ({low:.3f} to {high:.3f}) [{first:.2f}, {third:.2f}]"


def main() -> None:
    parts = [
        "# What attention costs on the CPU\n",
        f"Generated from `benchmarks/results/{SOURCES}`, a file a machine; do not edit.\n",
        f"    {COMMAND}\n",
        "Overhead: latency over that of the plain ResNet-50 in the same runtime and precision, measured one "
        "right after the other. **Median** (90 % interval of the median) [quartiles of the pairs]; 1.00 is "
        "attention for free. The floor is the network's arithmetic at the best rate that a single "
        "convolution reached in the same run.\n",
    ]
    for source in sorted(RESULTS.glob(SOURCES)):
        rows = read_rows(source)
        groups = _series(rows)
        plot = f"{source.stem}.svg"
        _plot(groups, DOCS / plot)
        parts.append(_machine(groups, rows[0], plot))
    with atomic_file(DOCS / "attention.md") as temporary:
        temporary.write_text("\n".join(parts), encoding="utf-8")


def _series(rows: list[dict[str, str]]) -> dict[Group, Series]:
    groups: defaultdict[Group, defaultdict[tuple[str, str], list[tuple[float, float]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for row in rows:
        pair = float(row["milliseconds"]), float(row["base_milliseconds"] or "nan")
        groups[row["precision"], row["batch"]][row["model"], row["form"]].append(pair)
    return {
        group: {
            key: Pairs(milliseconds=np.array([a for a, _ in pairs]), base=np.array([b for _, b in pairs]))
            for key, pairs in series.items()
        }
        for group, series in groups.items()
    }


def _machine(groups: Mapping[Group, Series], environment: Mapping[str, str], plot: str) -> str:
    machine = ", ".join(
        f"{name} {environment[name]}"
        for name in ("isa", "cores", "onnxruntime", "torch", "commit")
        if name in environment
    )
    parts = [
        f"## {environment['cpu']}\n",
        f"{machine}. 224 pixels, {environment['threads']} threads.\n",
        f"![overhead of each form]({plot})\n",
        _absolutes(groups),
        *(_table(precision, batch, series) for (precision, batch), series in groups.items()),
    ]
    return "\n".join(parts)


def _absolutes(groups: Mapping[Group, Series]) -> str:
    """Milliseconds an image of the floor, the plain network and LCT in its best form."""
    lines = [
        "| | floor, ms/image | plain | LCT, best form | LCT over floor | LCT int8 speed-up |",
        "|---|---|---|---|---|---|",
    ]
    best = {group: _per_image(series["lct_resnet50", BEST], group) for group, series in groups.items()}
    for group, series in groups.items():
        floor, name = _floor(series, group)
        plain = np.median(series["lct_resnet50", BEST].base) / int(group[1])
        precision, batch = group
        fp32 = best.get(("fp32", batch))
        cells = [
            f"{floor:.2f} ({name})" if name else "not measured",
            f"{plain:.2f}",
            f"{best[group]:.2f}",
            f"{best[group] / floor:.2f}" if name else "–",
            f"{fp32 / best[group]:.2f}" if precision == "int8" and fp32 else "–",
        ]
        lines.append(f"| {precision}, batch {batch} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _per_image(pairs: Pairs, group: Group) -> float:
    return float(np.median(pairs.milliseconds)) / int(group[1])


def _floor(series: Series, group: Group) -> tuple[float, str]:
    """The least of all convolutions, and which one it is."""
    found = [(_per_image(pairs, group), form) for (model, form), pairs in series.items() if model == FLOOR]
    return min(found, default=(float("nan"), ""))


def _table(precision: str, batch: str, series: Series) -> str:
    lines = [
        f"### {precision}, batch {batch}\n",
        "| form | LCT ms/image | LCT overhead | SE ms/image | SE overhead |",
        "|---|---|---|---|---|",
    ]
    for form in FORMS:
        cells = [_cells(series, model, form, (precision, batch)) for model in MODELS]
        if any(cells):
            lines.append(f"| {form} | " + " | ".join(cell or "– | –" for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _cells(series: Series, model: str, form: str, group: Group) -> str:
    if (model, form) not in series:
        return ""
    pairs = series[model, form]
    return f"{_per_image(pairs, group):.2f} | {Ratio.of(pairs)}"


def _plot(groups: Mapping[Group, Series], path: Path) -> None:
    """One panel a precision and batch, a bar a form; greys that read on a light and on a dark ground."""
    ink = "#808080"
    coloured = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    with mpl.rc_context({"svg.hashsalt": "lct", "font.size": 8, **dict.fromkeys(coloured, ink)}):
        figure, axes = plt.subplots(1, len(groups), figsize=(3 * len(groups), 2.6), squeeze=False)
        for panel, ((precision, batch), series) in zip(axes[0], groups.items(), strict=True):
            _panel(panel, series)
            panel.set_title(f"{precision}, batch {batch}")
        axes[0][0].set_ylabel("overhead over plain, %")
        axes[0][0].legend(frameon=False)
        figure.tight_layout()
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)


def _panel(panel: Axes, series: Series) -> None:
    forms = [form for form in FORMS if ("lct_resnet50", form) in series]
    for offset, (model, label), colour in zip((-0.2, 0.2), MODELS.items(), COLOURS, strict=True):
        ratios = [Ratio.of(series[model, form]) for form in forms]
        heights = [100 * (ratio.median - 1) for ratio in ratios]
        panel.bar(np.arange(len(forms)) + offset, heights, 0.4, label=label, color=colour)
    panel.axhline(0, color="#808080", linewidth=0.6)
    panel.set_xticks(range(len(forms)), forms, rotation=40, ha="right")
    panel.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
