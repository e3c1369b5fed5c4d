"""The training loop: one step after another in all processes alike, resumable at any saved one."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lct_deploy.errors import DataError, LctDeployError
from lct_deploy.models.classifier import ImageClassifier
from lct_deploy.progress import stderr
from lct_deploy.train.accuracy import accuracy
from lct_deploy.train.batches import Batches
from lct_deploy.train.config import Execution, TrainConfig, learning_rate
from lct_deploy.train.files import Batch, Unreadable
from lct_deploy.train.interrupt import StopRequest
from lct_deploy.train.learner import Learner
from lct_deploy.train.meter import Meter
from lct_deploy.train.ranks import Ranks
from lct_deploy.train.state import EpochResult, Standing, read_state, restore, save_state

OnEpoch = Callable[[list[EpochResult], str], None]

_CALMER = "start again with a lower --lr or with --warmup-epochs"
_CHECK_STEPS = 10  # on a GPU: to read a loss is to wait for the GPU


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a run works on and how; `settings` are what it has in common with one that resumes it."""

    model: ImageClassifier
    train: Batches
    test: Batches
    config: TrainConfig
    execution: Execution
    ranks: Ranks
    unreadable: Unreadable
    settings: dict[str, Any]
    state_path: Path


class Trainer:
    """One run, in each of its processes; the main one writes the state.

    All processes go on, or none: what one meets is told to the others before the next step.
    """

    def __init__(self, job: Job, stop: StopRequest) -> None:
        self._job, self._stop, self._ranks = job, stop, job.ranks
        self._learner = Learner(job.model, job.config, job.execution, job.ranks)
        self._standing = Standing()
        self._losses: list[tuple[int, Tensor, float]] = []  # step, this process's sum, images of all
        self._check_every = 1 if job.ranks.device.type == "cpu" else _CHECK_STEPS
        self._saved: str | None = None
        self._left_out: set[str] = set()

    def run(self, *, resume: bool, on_epoch: OnEpoch) -> tuple[list[EpochResult], ImageClassifier]:
        """Train to the end: the epochs' results, and the weights for the checkpoint.

        `on_epoch` gets the results so far, and the time that is left, in the main process. Raises
        DataError where the state to resume from is missing, damaged or of other settings, or where too
        many images cannot be used; LctDeployError where the loss or a weight is no longer finite, or a
        signal has come: `state_path` then holds the last good state.
        """
        job = self._job
        if resume:
            state = self._ranks.from_main(lambda: read_state(job.state_path, job.settings))
            self._standing = restore(self._learner, state)
        standing, ranks = self._standing, self._ranks
        meter = Meter(standing, epochs=job.config.epochs, steps=len(job.train))
        while len(standing.history) < job.config.epochs:
            with self._stop.deferred():
                self._train_epoch(meter)
            top1, top5 = accuracy(self._learner.best, job.test, ranks)
            self._share_unreadable()
            standing.next_epoch(self._result(top1, top5, meter.seconds()))
            standing.seconds = meter.seconds()
            self._save()
            ranks.on_main(lambda: on_epoch(standing.history, meter.time_left()))
        return standing.history, self._learner.best

    def _result(self, top1: float, top5: float, seconds: float) -> EpochResult:
        standing = self._standing
        return EpochResult(
            epoch=standing.epoch,
            loss=standing.loss / standing.images,
            test_top1=top1,
            test_top5=top5,
            lr=learning_rate(self._job.config, standing.epoch - 1),
            images_per_second=standing.images_per_second,
            data_wait=standing.data_wait,
            seconds=seconds,
        )

    def _train_epoch(self, meter: Meter) -> None:
        """From the step where the run stands to the last; the state is then that of the epoch, untested."""
        standing, job = self._standing, self._job
        steps, epoch = len(job.train), standing.epoch - 1
        every = job.execution.save_every or steps
        job.model.train()
        parts = job.train.epoch(epoch, standing.step)
        with meter.epoch() as stepped:
            while standing.step < steps:
                with meter.waiting():
                    batches, failure = self._load(parts)
                images = self._agree(batches, failure)
                rate = learning_rate(job.config, epoch + standing.step / steps)
                loss = self._learner.step(batches, images, rate)
                standing.step += 1
                self._losses.append((standing.step, loss, images))
                stepped()
                if standing.step % every == 0 and standing.step < steps:
                    self._save()
        self._save()
        self._agree([], None)

    def _load(self, parts: Iterator[Batch]) -> tuple[list[Batch], LctDeployError | None]:
        """The parts of the next batch that are this process's, on its device, or why there are none."""
        try:
            batches = list(islice(parts, self._job.execution.accumulate))
        except LctDeployError as error:
            return [], error
        device = self._ranks.device
        return [(x.to(device, non_blocking=True), y.to(device, non_blocking=True)) for x, y in batches], None

    def _agree(self, batches: list[Batch], failure: LctDeployError | None) -> float:
        """How many images the next step has in all processes, once all can go on and are to."""
        loss, counted = 0.0, 0.0
        if len(self._losses) >= self._check_every:
            loss, counted, diverged = self._read_losses()
            failure = failure or diverged
        images, failed, stopping, news, loss = self._ranks.sums(
            sum(len(labels) for _, labels in batches),
            failure is not None,
            self._stop.asked is not None,
            len(self._job.unreadable.reasons - self._left_out),
            loss,
        )
        if failed:
            self._ranks.fail(failure)
        self._standing.loss += loss
        self._standing.images += counted
        if news:
            self._share_unreadable()
        if stopping:
            self._leave()
        return images

    def _read_losses(self) -> tuple[float, float, LctDeployError | None]:
        """Losses of this process since the last look, summed, and how many images of all they stand for.

        The third is the error of the first that is not finite.
        """
        total, counted = 0.0, 0.0
        values = torch.stack([loss for _, loss, _ in self._losses]).tolist() if self._losses else []
        for value, (step, _, images) in zip(values, self._losses, strict=True):
            if not math.isfinite(value):
                return 0.0, 0.0, self._diverged(f"the loss is {value}", step)
            total, counted = total + value, counted + images
        self._losses.clear()
        return total, counted, None

    def _diverged(self, what: str, step: int) -> LctDeployError:
        kept = f"{self._job.state_path} holds the last good state, {self._saved}; " if self._saved else ""
        return LctDeployError(f"{what} in epoch {self._standing.epoch}, step {step}", hint=kept + _CALMER)

    def _save(self) -> None:
        """Write the state, if all that it holds is finite."""
        standing, learner, ranks, job = self._standing, self._learner, self._ranks, self._job
        loss, counted, failure = self._read_losses()
        learner.settle()
        if failure is None and (broken := learner.broken()):
            failure = self._diverged(f"{broken} is not finite", standing.step)
        ranks.fail(failure)
        standing.loss += ranks.sums(loss)[0]
        standing.images += counted
        ranks.on_main(lambda: save_state(job.state_path, learner, standing, job.settings))
        self._saved = f"of epoch {standing.epoch}, step {standing.step}"

    def _leave(self) -> None:
        self._save()
        name = self._stop.asked.name if self._stop.asked else "a signal to another process"
        self._ranks.fail(
            LctDeployError(
                f"stopped by {name}; {self._job.state_path} holds the state {self._saved}",
                hint="the same command with --resume goes on from there",
            )
        )

    def _share_unreadable(self) -> None:
        """Tell what has been left out since the last time; raise DataError where it is too much."""
        unreadable = self._job.unreadable
        everywhere = set[str]().union(*self._ranks.gather(unreadable.reasons))
        for reason in sorted(everywhere - self._left_out):
            stderr.print(f"warning: left out: {reason}", markup=False)
        self._left_out |= everywhere
        unreadable.reasons.update(everywhere)
        if len(everywhere) > unreadable.limit:
            self._ranks.fail(
                DataError(
                    f"{len(everywhere)} images cannot be used, and {unreadable.limit} may be left out",
                    hint="mend or remove them, or give --max-unreadable",
                )
            )
