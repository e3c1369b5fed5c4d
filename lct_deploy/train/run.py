"""One training run from data to checkpoint file."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lct_deploy.architecture import ModelConfig, small_group_warning
from lct_deploy.atomic import check_writable
from lct_deploy.checkpoint import CheckpointMetadata, TrainingRecord, write_checkpoint
from lct_deploy.checkpoint.files import SUFFIXES
from lct_deploy.errors import LctDeployError, UsageError
from lct_deploy.preprocessing import Preprocessing
from lct_deploy.progress import stderr
from lct_deploy.train.config import Execution
from lct_deploy.train.files import Unreadable
from lct_deploy.train.interrupt import StopRequest
from lct_deploy.train.logs import EpochLog
from lct_deploy.train.loop import Job, Trainer
from lct_deploy.train.prepare import (
    batch_parts,
    build_classifier,
    check_parts,
    load_splits,
    make_batches,
    network_config,
    settle_preprocessing,
)
from lct_deploy.train.ranks import Ranks
from lct_deploy.train.recipes import Chosen
from lct_deploy.train.state import EpochResult


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What to train on what, and how; `command` is recorded as what made the checkpoint."""

    data: str
    chosen: Chosen
    output: Path
    command: str
    execution: Execution = field(default_factory=Execution)
    resume: bool = False

    @property
    def state_path(self) -> Path:
        return self.output.with_name(f"{self.output.stem}.state.pt")


def train(request: TrainRequest, ranks: Ranks) -> EpochResult:
    """Train and write the checkpoint; beside it a CSV of the epochs and the state to resume from.

    Called in every process of `ranks`. Raises UsageError for an output that cannot be written, DataError
    for data that cannot be used, ArchitectureError for a network that does not exist or lacks what is
    set, LctDeployError for a run that diverges or is stopped.
    """
    stop = StopRequest()
    with stop.watching():
        try:
            return _train(request, ranks, stop)
        except KeyboardInterrupt:
            raise _stopped(request.state_path) from None


def _train(request: TrainRequest, ranks: Ranks, stop: StopRequest) -> EpochResult:
    config, execution = request.chosen.config, request.execution
    ranks.on_main(lambda: _check_output(request.output))
    splits = ranks.each(lambda: load_splits(request.data))
    model = ranks.each(lambda: network_config(config, len(splits.classes)))
    preprocessing = ranks.each(lambda: settle_preprocessing(config, splits.train, model))
    ranks.each(lambda: check_parts(config, model, preprocessing, batch_parts(execution, ranks)))
    unreadable = Unreadable(limit=execution.max_unreadable)
    batches = ranks.each(lambda: make_batches(splits, preprocessing, config, execution, ranks, unreadable))
    _announce(request.chosen, model, ranks)
    job = Job(
        model=build_classifier(model, preprocessing, config, execution, ranks),
        train=batches[0],
        test=batches[1],
        config=config,
        execution=execution,
        ranks=ranks,
        unreadable=unreadable,
        settings=_settings(request, model, preprocessing, ranks),
        state_path=request.state_path,
    )
    events = execution.tensorboard if ranks.main else None
    log = ranks.each(lambda: EpochLog(request.output.with_suffix(".csv"), events))
    with closing(log):
        history, best = Trainer(job, stop).run(resume=request.resume, on_epoch=_reporter(log, config.epochs))
    metadata = CheckpointMetadata(
        model=model,
        labels=splits.classes,
        preprocessing=preprocessing,
        training=_record(request, history[-1], len(unreadable.reasons)),
    )
    ranks.on_main(lambda: write_checkpoint(request.output, best.network.state_dict(), metadata))
    return history[-1]


def export_note(config: ModelConfig) -> str | None:
    """What export will say of such a network, where it does not take it as it is."""
    if config.attention.kind != "lct" or config.attention.normalize:
        return None
    return (
        "an LCT without normalisation has no node of its own: `lct-deploy export` wants --allow-unfused, "
        "and runtimes compute it in plain operators"
    )


def _check_output(output: Path) -> None:
    if output.suffix not in SUFFIXES:
        raise UsageError(f"{output}: not a checkpoint name", hint=f"use one of {', '.join(SUFFIXES)}")
    check_writable(output)


def _announce(chosen: Chosen, model: ModelConfig, ranks: Ranks) -> None:
    """What was assumed and what is unusual, before hours go into it."""
    name = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "CPU"
    stderr.print(f"{ranks.size} process{'es' if ranks.size > 1 else ''} on {name}", markup=False)
    if chosen.recipe is not None:
        stderr.print(f"recipe {chosen.recipe.label}: {chosen.recipe.about}", markup=False)
        theirs = chosen.recipe.config.model_dump()
        for setting, value in chosen.overrides.items():
            stderr.print(f"note: {setting} is {value}, not the recipe's {theirs[setting]}", markup=False)
    for warning in (small_group_warning(model), export_note(model)):
        if warning:
            stderr.print(f"warning: {warning}", markup=False)


def _settings(
    request: TrainRequest, model: ModelConfig, preprocessing: Preprocessing, ranks: Ranks
) -> dict[str, Any]:
    """What a run must have in common with the one that it resumes."""
    recipe = request.chosen.recipe
    return {
        "recipe": recipe.label if recipe else None,
        "data": request.data,
        "parts of a batch": batch_parts(request.execution, ranks),
        **request.chosen.config.model_dump(),
        **model.model_dump(),
        **preprocessing.model_dump(),
    }


def _reporter(log: EpochLog, epochs: int) -> Callable[[list[EpochResult], str], None]:
    def report(history: list[EpochResult], time_left: str) -> None:
        result = history[-1]
        log.write(history)
        left = f", {time_left} left" if result.epoch < epochs else ""
        stderr.print(
            f"epoch {result.epoch}: loss {result.loss:.4f}, test top-1 {result.test_top1:.2f} %, "
            f"{result.images_per_second:.0f} images/s, waiting for data {result.data_wait:.1f} %, "
            f"{result.seconds:.0f} s{left}",
            markup=False,
        )

    return report


def _record(request: TrainRequest, last: EpochResult, left_out: int) -> TrainingRecord:
    config = request.chosen.config
    return TrainingRecord(
        data=request.data,
        command=request.command,
        epochs=config.epochs,
        test_top1=last.test_top1,
        test_top5=last.test_top5,
        seconds=last.seconds,
        recipe=request.chosen.use,
        settings=config.model_dump(),
        left_out=left_out,
    )


def _stopped(state_path: Path) -> LctDeployError:
    hint = f"{state_path} holds the last state: the same command with --resume goes on from there"
    return LctDeployError("stopped", hint=hint if state_path.is_file() else None)
