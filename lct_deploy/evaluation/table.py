"""A score for people: its figures, its classes, and what the network takes for what."""

from collections.abc import Iterator

from rich.console import Group
from rich.table import Table
from rich.text import Text

from lct_deploy.evaluation.run import Evaluation
from lct_deploy.evaluation.scores import CALIBRATION_BINS, ClassScore, Confusion

MAX_CLASSES = 20  # of which a table is still read
MAX_UNREADABLE = 20


def describe_evaluation(evaluation: Evaluation) -> Group:
    """Of many classes the worst alone, and no matrix."""
    parts: list[Text | Table] = [Text("\n".join(_figures(evaluation)) + "\n"), _classes(evaluation)]
    if len(evaluation.classes) <= MAX_CLASSES:
        parts += [Text(""), _matrix(evaluation)]
    return Group(*parts)


def _figures(evaluation: Evaluation) -> Iterator[str]:
    low, high = evaluation.top1_interval
    top5 = "" if evaluation.top5 is None else f", top-5 {evaluation.top5:.2f} %"
    yield (
        f"{evaluation.model} on {evaluation.runtime} ({evaluation.device}), {evaluation.precision}, "
        f"batch {evaluation.batch}: {evaluation.images} images of {evaluation.data}"
    )
    yield f"  top-1 {evaluation.top1:.2f} % (95 % interval {low:.2f} to {high:.2f}){top5}"
    yield (
        f"  calibration error {evaluation.calibration.ece:.2f} points "
        f"(ECE, {CALIBRATION_BINS} bins of equal width)"
    )
    unreadable = evaluation.unreadable
    if unreadable:
        yield f"  {len(unreadable)} images could not be read and are left out:"
        yield from (f"    {image.path}: {image.reason}" for image in unreadable[:MAX_UNREADABLE])
        if len(unreadable) > MAX_UNREADABLE:
            yield f"    and {len(unreadable) - MAX_UNREADABLE} more, which --json lists"


def _classes(evaluation: Evaluation) -> Table:
    """The worst classes first, those without images last."""
    table = Table(box=None, pad_edge=False)
    table.add_column("class")
    for name in ("images", "top-1 %"):
        table.add_column(name, justify="right")
    table.add_column("mostly taken for")
    ordered = sorted(evaluation.classes, key=lambda score: (score.top1 is None, score.top1))
    mistakes = _mistakes(evaluation)
    for score in ordered[:MAX_CLASSES]:
        top1 = "–" if score.top1 is None else f"{score.top1:.2f}"
        table.add_row(score.label, str(score.images), top1, _taken_for(mistakes.get(score.index), ordered))
    if len(ordered) > MAX_CLASSES:
        table.caption = f"the worst of {len(ordered)} classes; --json has all"
        table.caption_justify = "left"
    return table


def _mistakes(evaluation: Evaluation) -> dict[int, Confusion]:
    """By class, what it is wrongly taken for most often."""
    worst: dict[int, Confusion] = {}
    for cell in evaluation.confusion:
        known = worst.get(cell.label)
        if cell.label != cell.prediction and (known is None or cell.images > known.images):
            worst[cell.label] = cell
    return worst


def _taken_for(mistake: Confusion | None, classes: list[ClassScore]) -> str:
    if mistake is None:
        return ""
    label = next(score.label for score in classes if score.index == mistake.prediction)
    return f"{label} ({mistake.images})"


def _matrix(evaluation: Evaluation) -> Table:
    """Rows are what images are, columns what they are taken for."""
    cells = {(cell.label, cell.prediction): cell.images for cell in evaluation.confusion}
    table = Table(box=None, pad_edge=False, title="confusion", title_justify="left")
    table.add_column("")
    for score in evaluation.classes:
        table.add_column(str(score.index), justify="right")
    for score in evaluation.classes:
        counts = (cells.get((score.index, other.index), 0) for other in evaluation.classes)
        table.add_row(f"{score.index} {score.label}", *(str(count) if count else "·" for count in counts))
    return table
