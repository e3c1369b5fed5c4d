"""The file that a run resumes from: weights, optimizer, where it stands, and what it was told."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import torch

from lct_deploy.atomic import atomic_file
from lct_deploy.errors import DataError
from lct_deploy.train.learner import Learner

_VERSION = 2
_ANEW = "start without --resume"


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """One line of the log; `seconds` counts from the start of the run over all its sessions.

    Accuracies in percent, of the weights that the checkpoint gets; `data_wait` is the share of the
    epoch's training, in percent, that was spent waiting for images.
    """

    epoch: int
    loss: float
    test_top1: float
    test_top5: float
    lr: float
    images_per_second: float
    data_wait: float
    seconds: float


@dataclass(kw_only=True)
class Standing:
    """How far a run has come: whole epochs, and what it has summed up in the one that it is in.

    `loss` is summed over `images`; `trained` and `waited` are seconds of this epoch's training and, in
    them, of waiting for images; `seconds` is the time of the run up to its last step.
    """

    history: list[EpochResult] = field(default_factory=list[EpochResult])
    step: int = 0
    loss: float = 0.0
    images: float = 0.0
    trained: float = 0.0
    waited: float = 0.0
    seconds: float = 0.0

    @property
    def epoch(self) -> int:
        """The one that the run is in, from 1 on."""
        return len(self.history) + 1

    @property
    def images_per_second(self) -> float:
        """Of all processes together, in this epoch's training."""
        return self.images / self.trained if self.trained else 0.0

    @property
    def data_wait(self) -> float:
        return 100 * self.waited / self.trained if self.trained else 0.0

    def next_epoch(self, result: EpochResult) -> None:
        """The epoch is over, and `result` is what came of it."""
        self.history.append(result)
        self.step, self.loss, self.images, self.trained, self.waited = 0, 0.0, 0.0, 0.0, 0.0


def save_state(path: Path, learner: Learner, standing: Standing, settings: dict[str, Any]) -> None:
    """Replace `path` atomically."""
    state = {
        "version": _VERSION,
        "settings": settings,
        "model": learner.model.state_dict(),
        "average": None if learner.average is None else learner.average.state_dict(),
        "optimizer": learner.optimizer.state_dict(),
        "scaler": learner.scaler.state_dict(),
        **asdict(standing),
    }
    with atomic_file(path) as temporary:
        torch.save(state, temporary)


def read_state(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The state in `path`, on the CPU.

    Raises DataError where it is missing, damaged, or of a run with other settings, which are named.
    """
    if not path.is_file():
        raise DataError(f"{path}: no training state to resume from", hint=_ANEW)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes raise whatever the reader stumbles on
        raise DataError(f"{path}: damaged training state", hint=_ANEW) from error
    if not isinstance(state, dict) or "settings" not in state:
        raise DataError(f"{path}: not a training state", hint=_ANEW)
    state = cast("dict[str, Any]", state)
    if state.get("version") != _VERSION:
        raise DataError(f"{path}: a training state of another version of lct-deploy", hint=_ANEW)
    then: dict[str, Any] = state["settings"]
    different = [f"{k} was {then.get(k)}, now {v}" for k, v in settings.items() if then.get(k) != v]
    if different:
        raise DataError(
            f"{path}: was written by a run with other settings: {'; '.join(different)}",
            hint="resume with the same options, or start anew without --resume",
        )
    return state


def restore(learner: Learner, state: dict[str, Any]) -> Standing:
    """Give the learner what `read_state` found; where the run stands."""
    learner.model.load_state_dict(state["model"])
    if learner.average is not None:
        learner.average.load_state_dict(state["average"])
    learner.optimizer.load_state_dict(state["optimizer"])
    learner.scaler.load_state_dict(state["scaler"])
    numbers = {f.name: state[f.name] for f in fields(Standing) if f.name != "history"}
    return Standing(history=[EpochResult(**entry) for entry in state["history"]], **numbers)
