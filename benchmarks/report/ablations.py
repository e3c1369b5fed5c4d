"""The paper's ablations on Fashion-MNIST beside what the paper has, from benchmarks.ablations."""

import numpy as np

from benchmarks.ablations import SETTINGS
from benchmarks.report.section import Section, Shown
from benchmarks.report.sources import Results, Rows, Source, numbers
from benchmarks.report.tables import ABSENT, table

_PAPER = {setting.name: setting.paper for setting in SETTINGS}
_LCT = SETTINGS[0].name


def _show(source: Source, _: Results) -> Shown:
    groups = {name: rows for (name,), rows in source.groups("setting").items()}
    whole = numbers(groups.get(_LCT, []), "top1")
    header = ("", "paper's table", "top-1, %", "± of seeds", "beside LCT, points", "seeds", "paper, %")
    lines = [[name, *_figures(rows, whole), _PAPER.get(name) or ABSENT] for name, rows in groups.items()]
    (epochs,) = dict.fromkeys(row["epochs"] for row in source.rows)
    return Shown(text=f"{epochs} epochs a run.\n\n{table(header, lines)}")


def _figures(rows: Rows, whole: list[float]) -> list[str]:
    """Mean and deviation of a setting's seeds, and the mean's distance from that of LCT as it is."""
    found = numbers(rows, "top1")
    where = rows[0]["table"]
    if not found:
        return [where, f"**failed**: {rows[0]['error']}", ABSENT, ABSENT, str(len(rows))]
    deviation = f"{np.std(found, ddof=1):.2f}" if len(found) > 1 else ABSENT
    beside = f"{np.mean(found) - np.mean(whole):+.2f}" if whole else ABSENT
    return [where, f"**{np.mean(found):.2f}**", deviation, beside, str(len(found))]


SECTION = Section(
    kind="ablations",
    title="Ablations of the paper",
    command="python -m benchmarks.ablations",
    about="ResNet-20 of 28 pixels, trained on Fashion-MNIST from several seeds; top-1 of the last epoch on "
    "the 10,000 test images. The paper's figures are of ResNet-50 on ImageNet: what may be compared is the "
    "order, and only where a difference is larger than the deviation of the seeds.",
    show=_show,
    packages=("torch",),
)
