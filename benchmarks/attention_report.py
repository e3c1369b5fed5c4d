"""Tables and plot of benchmarks/results/attention.csv: docs/attention.md and docs/attention.svg.

The overhead ratio is the median over rounds of latency(model) / latency(plain network), of samples that were
taken in the same round; the brackets hold the quartiles.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from numpy.typing import NDArray

from benchmarks.rows import RESULTS, read_rows
from lct_deploy.atomic import atomic_file

SOURCE = RESULTS / "attention.csv"
DOCS = Path(__file__).parent.parent / "docs"
PLAIN = ("resnet50", "portable")
MODELS = {"lct_resnet50": "LCT", "se_resnet50": "SE"}
FORMS = ("default", "portable", "onnxruntime", "stock", "library", "torch eager", "torch compile")
COLOURS = ("#3b82f6", "#f59e0b")
COMMAND = "python -m benchmarks.attention && python -m benchmarks.attention_report"

Floats = NDArray[np.float64]
Group = tuple[str, str]  # precision, batch
Series = dict[tuple[str, str], Floats]  # milliseconds by round, of a model in a form


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Median and quartiles of a paired ratio."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Floats, base: Floats) -> "Ratio":
        low, median, high = np.quantile(samples / base, (0.25, 0.5, 0.75))
        return cls(median=float(median), low=float(low), high=float(high))

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


def main() -> None:
    rows = read_rows(SOURCE)
    groups = _series(rows)
    with atomic_file(DOCS / "attention.md") as temporary:
        temporary.write_text(_document(groups, rows[0]), encoding="utf-8")
    _plot(groups, DOCS / "attention.svg")


def _series(rows: list[dict[str, str]]) -> dict[Group, Series]:
    """Samples in the order of their rounds."""
    groups: defaultdict[Group, defaultdict[tuple[str, str], list[tuple[int, float]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for row in rows:
        sample = int(row["round"]), float(row["milliseconds"])
        groups[row["precision"], row["batch"]][row["model"], row["form"]].append(sample)
    return {
        group: {key: np.array([ms for _, ms in sorted(samples)]) for key, samples in series.items()}
        for group, series in groups.items()
    }


def base_of(series: Series, form: str) -> Floats:
    """What a form is compared with: the plain network in torch for torch's, in onnxruntime for the others."""
    return series["resnet50", form] if form.startswith("torch") else series[PLAIN]


def _document(groups: dict[Group, Series], environment: dict[str, str]) -> str:
    machine = ", ".join(
        f"{name} {environment[name]}" for name in ("cpu", "cores", "onnxruntime", "torch", "commit")
    )
    parts = [
        "# What attention costs on the CPU\n",
        "Generated from `benchmarks/results/attention.csv`; do not edit.\n",
        f"    {COMMAND}\n",
        f"Measured on: {machine}. 224 pixels, {environment['threads']} threads.\n",
        "Overhead: latency over that of the plain ResNet-50 in the same runtime, precision and round; median "
        "[quartiles]. 1.00 is attention for free.\n",
        "![overhead of each form](attention.svg)\n",
    ]
    for (precision, batch), series in groups.items():
        parts.append(_table(precision, batch, series))
    return "\n".join(parts)


def _table(precision: str, batch: str, series: Series) -> str:
    images = int(batch)
    plain = np.median(series[PLAIN]) / images
    lines = [
        f"## {precision}, batch {batch}\n",
        f"Plain ResNet-50 in onnxruntime: {plain:.2f} ms an image.\n",
        "| form | LCT ms/image | LCT overhead | SE ms/image | SE overhead |",
        "|---|---|---|---|---|",
    ]
    for form in FORMS:
        cells = [_cells(series, model, form, images) for model in MODELS]
        if any(cells):
            lines.append(f"| {form} | " + " | ".join(cell or "– | –" for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _cells(series: Series, model: str, form: str, images: int) -> str:
    if (model, form) not in series:
        return ""
    samples = series[model, form]
    return f"{np.median(samples) / images:.2f} | {Ratio.of(samples, base_of(series, form))}"


def _plot(groups: dict[Group, Series], path: Path) -> None:
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
        ratios = [Ratio.of(series[model, form], base_of(series, form)) for form in forms]
        heights = [100 * (ratio.median - 1) for ratio in ratios]
        panel.bar(np.arange(len(forms)) + offset, heights, 0.4, label=label, color=colour)
    panel.axhline(0, color="#808080", linewidth=0.6)
    panel.set_xticks(range(len(forms)), forms, rotation=40, ha="right")
    panel.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
