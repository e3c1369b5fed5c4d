"""Short training runs for tests, and how two of them compare."""

import csv
from pathlib import Path
from typing import Any

import torch

from lct_deploy.checkpoint import load_checkpoint
from lct_deploy.train.config import Execution, TrainConfig
from lct_deploy.train.ranks import Ranks
from lct_deploy.train.recipes import Chosen, Recipe
from lct_deploy.train.run import TrainRequest, train
from lct_deploy.train.state import EpochResult

CONFIG = TrainConfig(epochs=3, batch_size=30, lr=0.05, schedule="cosine")
# The same in a shell.
OPTIONS = ("--epochs", "3", "--batch-size", "30", "--lr", "0.05", "--schedule", "cosine")


def run(
    data: Path,
    output: Path,
    *,
    resume: bool = False,
    execution: Execution | None = None,
    recipe: Recipe | None = None,
    **changes: Any,
) -> EpochResult:
    """CONFIG with `changes`, in this process."""
    request = TrainRequest(
        data=str(data),
        chosen=Chosen(config=CONFIG.model_copy(update=changes), recipe=recipe),
        output=output,
        command="lct-deploy train",
        execution=execution or Execution(device="cpu"),
        resume=resume,
    )
    return train(request, Ranks(device=torch.device("cpu")))


def log(output: Path) -> list[dict[str, str]]:
    """The rows of a checkpoint's CSV."""
    with output.with_suffix(".csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def same_weights(first: Path, second: Path) -> bool:
    a, b = (load_checkpoint(path).model.state_dict() for path in (first, second))
    return all(torch.equal(a[key], b[key]) for key in a.keys() | b.keys())
