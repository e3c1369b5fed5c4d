"""The training loop: SGD with momentum, one epoch after another, resumable at each."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from lct_deploy.atomic import atomic_file
from lct_deploy.errors import DataError, LctDeployError
from lct_deploy.models.classifier import ImageClassifier
from lct_deploy.progress import progress_bar, track
from lct_deploy.train.batches import Batches
from lct_deploy.train.config import TrainConfig, learning_rate

_DIVERGED = "start again with a lower --lr or with --warmup-epochs"


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """One line of the log; `seconds` counts from the start of the run over all its sessions."""

    epoch: int
    loss: float
    test_top1: float
    lr: float
    seconds: float


def fit(
    model: ImageClassifier,
    train: Batches,
    test: Batches,
    config: TrainConfig,
    *,
    settings: dict[str, Any],
    state_path: Path,
    resume: bool,
    on_epoch: Callable[[EpochResult], None],
) -> list[EpochResult]:
    """Train in place; after each epoch the whole state is written to `state_path`.

    `settings` are what a run has to have in common with the one that it resumes. Raises DataError
    where the state to resume from is missing, damaged or of other settings, LctDeployError where the
    loss or a weight is no longer finite: `state_path` then still holds the last good epoch.
    """
    optimizer = _optimizer(model, config)
    history = _restore(state_path, model, optimizer, settings) if resume else []
    spent = history[-1].seconds if history else 0.0
    started = time.monotonic() - spent
    for epoch in range(len(history), config.epochs):
        loss = _train_epoch(model, train, optimizer, config, epoch)
        _check_finite(model, epoch)
        result = EpochResult(
            epoch=epoch + 1,
            loss=loss,
            test_top1=accuracy(model, test),
            lr=learning_rate(config, epoch),
            seconds=time.monotonic() - started,
        )
        history.append(result)
        _save(state_path, model, optimizer, settings, history)
        on_epoch(result)
    return history


def accuracy(model: ImageClassifier, batches: Batches) -> float:
    """Top-1 accuracy in percent, in evaluation mode."""
    model.eval()
    correct = total = 0
    with torch.inference_mode():
        for images, labels in track(batches.epoch(0), "test", total=len(batches)):
            correct += int((model(images).argmax(dim=1) == labels).sum())
            total += len(labels)
    return 100.0 * correct / total


def _train_epoch(
    model: ImageClassifier, batches: Batches, optimizer: torch.optim.SGD, config: TrainConfig, epoch: int
) -> float:
    model.train()
    total = 0.0
    with progress_bar() as bar:
        task = bar.add_task(f"epoch {epoch + 1}/{config.epochs}", total=len(batches), status="")
        for step, (images, labels) in enumerate(batches.epoch(epoch)):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, epoch + step / len(batches))
            with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
                logits = model(images)
            loss = functional.cross_entropy(logits.float(), labels)
            value = float(loss.detach())
            if not torch.isfinite(loss):
                raise LctDeployError(
                    f"the loss is {value} in epoch {epoch + 1}, step {step + 1}", hint=_DIVERGED
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += value
            bar.update(task, advance=1, status=f"loss {value:.3f}")
    return total / len(batches)


def _check_finite(model: nn.Module, epoch: int) -> None:
    """The last step's weights have met no loss yet: raise LctDeployError before they are kept."""
    broken = [name for name, value in model.state_dict().items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise LctDeployError(f"{broken[0]} is not finite at the end of epoch {epoch + 1}", hint=_DIVERGED)


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.SGD:
    return torch.optim.SGD(
        model.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )


def _save(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.SGD,
    settings: dict[str, Any],
    history: list[EpochResult],
) -> None:
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "settings": settings,
        "history": [vars(result) for result in history],
    }
    with atomic_file(path) as temporary:
        torch.save(state, temporary)


def _restore(
    path: Path, model: nn.Module, optimizer: torch.optim.SGD, settings: dict[str, Any]
) -> list[EpochResult]:
    state = _read_state(path)
    then = state["settings"]
    different = [f"{k} was {then.get(k)}, now {v}" for k, v in settings.items() if then.get(k) != v]
    if different:
        raise DataError(
            f"{path}: was written by a run with other settings: {'; '.join(different)}",
            hint="resume with the same options, or start anew without --resume",
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return [EpochResult(**entry) for entry in state["history"]]


def _read_state(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"{path}: no training state to resume from", hint="start without --resume")
    try:
        state = torch.load(path, weights_only=True)
    except Exception as error:  # damaged bytes raise whatever the reader stumbles on
        raise DataError(f"{path}: damaged training state", hint="start without --resume") from error
    if not isinstance(state, dict) or "settings" not in state:
        raise DataError(f"{path}: not a training state", hint="start without --resume")
    return cast("dict[str, Any]", state)
