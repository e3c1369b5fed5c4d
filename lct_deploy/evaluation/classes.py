"""Which class of the network a class of the data is: the one of the same name."""

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from lct_deploy.datasets import ArrayImages, LabelledImages
from lct_deploy.errors import DataError
from lct_deploy.suggest import did_you_mean

_LISTED = 5


def match_classes(data: LabelledImages, labels: tuple[str, ...]) -> NDArray[np.int64]:
    """For each class of the data its index among the network's `labels`.

    The order of the classes means nothing, and the network may have classes that the data lack. Only
    where the data have numbers for names, as IDX files do, these are the network's own. Raises DataError
    for a class that the network lacks, or has twice.
    """
    if isinstance(data, ArrayImages) and not data.named:
        return _match_numbers(len(data.classes), len(labels))
    counts = Counter(labels)
    missing = [name for name in data.classes if name not in counts]
    if missing:
        raise _lacking(missing, data.classes, labels)
    twice = [name for name in data.classes if counts[name] > 1]
    if twice:
        raise DataError(
            f"the network has {counts[twice[0]]} classes called {twice[0]!r}: which of them is meant?",
            hint="--labels FILE names its classes as the data do, one a line, each once",
        )
    index = {name: i for i, name in enumerate(labels)}
    return np.array([index[name] for name in data.classes], np.int64)


def _match_numbers(numbers: int, classes: int) -> NDArray[np.int64]:
    if numbers > classes:
        raise DataError(f"the data have images of class {numbers - 1}, the network has {classes} classes")
    return np.arange(numbers, dtype=np.int64)


def _lacking(missing: list[str], classes: tuple[str, ...], labels: tuple[str, ...]) -> DataError:
    shown = [f"  {name!r}{did_you_mean(name, labels)}" for name in missing[:_LISTED]]
    more = len(missing) - len(shown)
    lines = [
        f"{len(missing)} of the {len(classes)} classes of the data are none of the network's {len(labels)}:",
        *shown,
        *([f"  and {more} more"] if more else []),
        f"the network has {', '.join(map(repr, labels[:_LISTED]))}{', …' if len(labels) > _LISTED else ''}",
    ]
    return DataError(
        "\n".join(lines),
        hint="--labels FILE names its classes as the data do, one a line in the network's order "
        "(torchvision numbers the folders by their names: ls DIR > FILE)",
    )
