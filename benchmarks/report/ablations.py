"""The paper's ablations on Fashion-MNIST beside what the paper has, from benchmarks.ablations."""

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.ablations import SETTINGS, Setting
from benchmarks.report.section import Section, Shown
from benchmarks.report.sources import Results, Rows, Source, numbers
from benchmarks.report.tables import ABSENT, table

_TITLES = {
    "1": "attention",
    "2": "the number of groups",
    "3": "LCT without one of its operators",
    "4": "SE with LCT's normalisation",
    "5": "first values of w and b",
}
_LCT = SETTINGS[0]  # stands in every table
_HEADER = ("", "top-1, %", "seeds", "beside LCT, points", "paper, %", "beside its LCT", "")


def _show(source: Source, _: Results) -> Shown:
    found = {name: rows for (name,), rows in source.groups("setting").items()}
    (epochs,) = dict.fromkeys(row["epochs"] for row in source.rows)
    parts = [f"{epochs} epochs a run.\n"]
    for number, title in _TITLES.items():
        chosen = [s for s in SETTINGS if s.name in found and (s is _LCT or number in s.table)]
        if chosen != [_LCT]:
            lines = [_line(setting, found) for setting in chosen]
            parts.append(f"The paper's Table {number}, {title}:\n\n{table(_HEADER, lines)}")
    return Shown(text="\n".join(parts))


def _line(setting: Setting, found: Mapping[str, Rows]) -> list[str]:
    rows = found[setting.name]
    own, whole = numbers(rows, "top1"), numbers(found.get(_LCT.name, []), "top1")
    top1 = f"**{np.mean(own):.2f}** [{min(own):.2f}, {max(own):.2f}]" if own else _failed(rows)
    difference, verdict = ABSENT, ABSENT
    if own and whole and setting is not _LCT:
        difference = f"{np.mean(own) - np.mean(whole):+.2f}"
        verdict = _verdict(own, whole, setting.paper)
    paper, beside = _paper(setting)
    return [setting.name, top1, str(len(rows)), difference, paper, beside, verdict]


def _failed(rows: Rows) -> str:
    return f"**failed**: {rows[0]['error']}"


def _paper(setting: Setting) -> tuple[str, str]:
    """Its top-1 and how far that is from its LCT."""
    if setting.paper is None or _LCT.paper is None:
        return setting.note or ABSENT, ABSENT
    note = f" ({setting.note})" if setting.note else ""
    beside = ABSENT if setting is _LCT else f"{setting.paper - _LCT.paper:+.2f}"
    return f"{setting.paper:.2f}{note}", beside


def _verdict(own: Sequence[float], whole: Sequence[float], paper: float | None) -> str:
    """Whether the order is the paper's; only told where no seed of one lies among those of the other."""
    if min(len(own), len(whole)) < 2:
        return "too few seeds"
    below, above = max(own) < min(whole), min(own) > max(whole)
    if paper is None or _LCT.paper is None:
        return "**disagrees**: it converges" + (", and is worse" if below else "")
    if not (below or above):
        return "not told apart"
    return "agrees" if below == (paper < _LCT.paper) else "**disagrees**"


SECTION = Section(
    kind="ablations",
    title="Ablations of the paper",
    command="python -m benchmarks.ablations",
    about="ResNet-20 of 28 pixels, trained on Fashion-MNIST in bfloat16 mixed precision from several seeds; "
    "top-1 of the last epoch on the 10,000 test images, mean [least, largest]. The paper's figures are of "
    "ResNet-50 on ImageNet, one run each: what may be compared is the order. It is told where no seed of a "
    "setting lies among LCT's, which with three seeds each happens once in ten times by chance.",
    show=_show,
    packages=("torch",),
)
