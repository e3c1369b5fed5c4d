"""A run's epochs as a CSV file and, where asked for, as TensorBoard's scalars."""

import csv
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from lct_deploy.atomic import atomic_file
from lct_deploy.errors import RuntimeUnavailableError
from lct_deploy.train.state import EpochResult

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class EpochLog:
    """Written anew after every epoch; `tensorboard` is a directory for event files.

    Raises RuntimeUnavailableError where TensorBoard is asked for and not installed.
    """

    def __init__(self, path: Path, tensorboard: Path | None) -> None:
        self._path = path
        self._writer = None
        if tensorboard is not None:
            self._writer = _summary_writer(tensorboard)

    def write(self, history: list[EpochResult]) -> None:
        with atomic_file(self._path) as temporary, temporary.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(asdict(history[0])))
            writer.writeheader()
            writer.writerows(asdict(result) for result in history)
        if self._writer is not None:
            values = asdict(history[-1])
            epoch = values.pop("epoch")
            for name, value in values.items():
                self._writer.add_scalar(name, value, epoch)
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _summary_writer(directory: Path) -> "SummaryWriter":
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise RuntimeUnavailableError(
            "--tensorboard needs the package tensorboard, which is not installed",
            hint="pip install 'lct-deploy[tensorboard]'",
        ) from error
    return SummaryWriter(str(directory))
