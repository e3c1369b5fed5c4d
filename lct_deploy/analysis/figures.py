"""The paper's figures 1, 3 and 4 and the correlation behind them, as PNG and SVG (matplotlib).

A column is a block; channels stand in the order of their averaged context before the block, each network's
own.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lct_deploy.analysis.statistics import Block, Correlation

# Okabe and Ito's, which the colour-blind can tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_GREY = "#b0b0b0"
_PANEL = (3.0, 2.2)  # inches
_RANK = "channel, by context"
_SHORT = 26  # characters that fit beside a panel

Models = Mapping[str, Sequence[Block]]  # by name, in the order of the columns
Panel = Callable[[Axes, int], None]  # draws a column's panel


def draw_all(models: Models, directory: Path) -> None:
    """Write context, variation and correlation, each as .png and .svg."""
    colours = dict(zip(models, cycle(COLOURS), strict=False))
    contexts = [
        (f"context\n{name[:_SHORT]}", partial(_context, blocks, colours[name]))
        for name, blocks in models.items()
    ]
    figures = {
        "context": ([("attention", partial(_attention, models, colours)), *contexts], _RANK),
        "variation": ([("Δ, absolute variation", partial(_variation, models, colours))], _RANK),
        "correlation": ([("attention", partial(_correlation, models, colours))], "|context|"),
    }
    titles = [" / ".join(_places(column)) for column in zip(*models.values(), strict=True)]
    for name, (rows, x) in figures.items():
        figure = _grid(rows, titles, x)
        handles = [Line2D([], [], color=colour, label=model) for model, colour in colours.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(titles), frameon=False)
        _save(figure, directory / name)


def _places(blocks: Iterable[Block]) -> Iterable[str]:
    """Where the blocks of a column are: in one place, as a rule."""
    return dict.fromkeys(block.layer.removesuffix(".attn") for block in blocks)


def _grid(rows: Sequence[tuple[str, Panel]], titles: Sequence[str], x: str) -> Figure:
    """Rows of panels under the columns' titles, what a row shows at its left."""
    size = (_PANEL[0] * len(titles) + 0.5, _PANEL[1] * len(rows) + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    for i, (label, draw) in enumerate(rows):
        for column, title in enumerate(titles):
            axes = figure.add_subplot(len(rows), len(titles), i * len(titles) + column + 1)
            draw(axes, column)
            axes.spines[["top", "right"]].set_visible(False)
            if i == 0:
                axes.set_title(title, fontsize="medium")
            if i == len(rows) - 1:
                axes.set_xlabel(x)
            if column == 0:
                axes.set_ylabel(label)
    return figure


def _attention(models: Models, colours: Mapping[str, str], axes: Axes, column: int) -> None:
    for name, blocks in models.items():
        block = blocks[column]
        axes.plot(block.attention[block.order], color=colours[name], linewidth=0.8)


def _context(blocks: Sequence[Block], colour: str, axes: Axes, column: int) -> None:
    block = blocks[column]
    axes.plot(block.before[block.order], color=_GREY, linewidth=1.6, label="before")
    axes.plot(block.after[block.order], color=colour, linewidth=0.8, label="after")
    if column == 0:
        axes.legend(frameon=False, fontsize="small")


def _variation(models: Models, colours: Mapping[str, str], axes: Axes, column: int) -> None:
    for name, blocks in models.items():
        block = blocks[column]
        axes.plot(block.delta[block.order], color=colours[name], linewidth=0.8)


def _correlation(models: Models, colours: Mapping[str, str], axes: Axes, column: int) -> None:
    for name, blocks in models.items():
        block = blocks[column]
        label = _rho(block.of_channels)
        x = np.abs(block.before)
        axes.scatter(x, block.attention, s=6, color=colours[name], alpha=0.6, linewidths=0, label=label)
    axes.legend(frameon=False, fontsize="small")


def _rho(correlation: Correlation) -> str:
    if correlation.value is None:
        return "ρ unknown"
    interval = "" if correlation.interval is None else " [{:+.2f}, {:+.2f}]".format(*correlation.interval)
    return f"ρ {correlation.value:+.2f}{interval}"


def _save(figure: Figure, path: Path) -> None:
    """Equal data give equal files."""
    with mpl.rc_context({"svg.hashsalt": "lct"}):
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
        figure.savefig(path.with_suffix(".png"), dpi=150, metadata={"Software": None})
