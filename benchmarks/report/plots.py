"""Plots as SVG that any machine draws alike, and that read on a light and on a dark ground.

The ground is transparent, and every colour keeps a contrast of 3.5 or more with white and with GitHub's
dark #0d1117 (a test computes it): a style for dark themes inside an image would follow the system's theme,
not that of the page. Text is drawn as paths, since fonts differ between machines.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from benchmarks.quartiles import Quartiles

INK = "#767b84"
COLOURS = ("#3b82f6", "#c2680a", "#15924a", "#a855f7", "#d6477f", "#0e93a8", "#8a7a3c")
MARKERS = "osD^vPX"
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "lct-deploy",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",  # matplotlib's own
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


@dataclass(frozen=True, kw_only=True)
class Dots:
    """A series of ratios, one for each name on the axis; None where there is none."""

    label: str
    values: Sequence[Quartiles | None]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A series of points."""

    label: str
    x: Sequence[float]
    y: Sequence[float]


def ratio_plot(panels: Mapping[str, tuple[Sequence[str], Sequence[Dots]]], label: str) -> str:
    """A panel below the other by its title: names on the left, ratios as dots with their quartiles.

    The axis is logarithmic, so that twice and half are as far from 1.
    """
    heights = [len(names) * 0.16 * (1 + len(series)) / 2 + 0.5 for names, series in panels.values()]

    def draw(figure: Figure) -> None:
        ratios = {"height_ratios": heights}
        axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True, gridspec_kw=ratios)[:, 0]
        for panel, (title, (names, series)) in zip(axes, panels.items(), strict=True):
            _dots(panel, names, series)
            panel.set_title(title, loc="left", fontsize=9)
        axes[-1].set_xlabel(label)
        axes[0].legend(frameon=False, loc="lower left", bbox_to_anchor=(0.3, 1), ncols=3)

    return _svg(draw, width=7.5, height=sum(heights) + 0.2 * len(panels) + 0.6)


def curve_plot(panels: Mapping[str, Sequence[Curve]], label: str, *, logarithmic: bool) -> str:
    """Panels side by side by the label of their x axis; `label` is of y."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for panel, (title, curves) in zip(axes, panels.items(), strict=True):
            for curve, colour, marker in zip(curves, COLOURS, MARKERS, strict=False):
                kind = "log" if logarithmic else "linear"
                panel.plot(curve.x, curve.y, color=colour, marker=marker, markersize=3, label=curve.label)
                panel.set(xlabel=title, xscale=kind, yscale=kind)
            if len(curves) > 1:
                panel.legend(frameon=False)
        axes[0].set_ylabel(label)

    return _svg(draw, width=2.6 * max(len(panels), 2), height=2.6)


def _dots(panel: Axes, names: Sequence[str], series: Sequence[Dots]) -> None:
    step = 0.8 / len(series)
    for index, (dots, colour, marker) in enumerate(zip(series, COLOURS, MARKERS, strict=False)):
        points = [
            (place + step * (index - (len(series) - 1) / 2), value)
            for place, value in enumerate(dots.values)
            if value is not None
        ]
        if not points:
            continue
        below = [value.median - value.first for _, value in points]
        above = [value.third - value.median for _, value in points]
        panel.errorbar(
            [round(value.median, 5) for _, value in points],
            [y for y, _ in points],
            xerr=(below, above),
            fmt=marker,
            color=colour,
            markersize=4,
            linewidth=1.2,
            label=dots.label,
        )
    panel.set_xscale("log")
    panel.axvline(1, color=INK, linewidth=1)
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 1.2, 1.5, 2, 3, 5, 7)))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _svg(draw: Callable[[Figure], None], *, width: float, height: float) -> str:
    """Without pyplot, whose figures are the process's, and without a date."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        _settle(figure)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return text.getvalue()


def _settle(figure: Figure) -> None:
    """Fix the axes where the layout puts them, in whole thousandths: its last bits differ from run to run."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        left, bottom, width, height = axes.get_position().bounds
        axes.set_position((round(left, 3), round(bottom, 3), round(width, 3), round(height, 3)))
