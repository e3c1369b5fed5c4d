"""A summary for people: a line a block."""

from rich.console import Group
from rich.table import Table
from rich.text import Text

from lct_deploy.analysis.summary import BlockSummary, CorrelationSummary, ModelSummary, Summary

_NUMBERS = (
    "channels", "context sd", "after", "Δ", "ρ of channels [95 %]", "ρ of images [95 %]",
    "gate [least, most]", "saturated %", "shut", "open", "constant",
)  # fmt: skip


def describe_summary(summary: Summary) -> Group:
    return Group(*(part for model in summary.models for part in _model(model)))


def _model(model: ModelSummary) -> tuple[Text, Table]:
    left_out = f", {len(model.unreadable)} could not be read" if model.unreadable else ""
    table = Table(box=None, pad_edge=False)
    table.add_column("block")
    for name in _NUMBERS:
        table.add_column(name, justify="right")
    for block in model.blocks:
        table.add_row(block.layer, *_cells(block))
    return Text(f"{model.name} on {model.runtime}: {model.images} images{left_out}"), table


def _cells(block: BlockSummary) -> list[str]:
    gates = block.gates
    return [
        str(block.channels),
        f"{block.before.sd:.3f}",
        f"{block.after.sd:.3f}",
        f"{block.delta:.3f}",
        _rho(block.of_channels),
        _rho(block.of_images),
        f"{gates.mean:.3f} [{gates.min:.3f}, {gates.max:.3f}]",
        f"{gates.saturated_low + gates.saturated_high:.2f}",
        str(gates.shut),
        str(gates.open),
        str(gates.constant),
    ]


def _rho(correlation: CorrelationSummary) -> str:
    if correlation.value is None:
        return "–"
    interval = "" if correlation.interval is None else " [{:+.2f}, {:+.2f}]".format(*correlation.interval)
    return f"{correlation.value:+.2f}{interval}"
