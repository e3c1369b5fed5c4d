"""What training changes, and one step of it: gradients over the parts of a batch, then SGD."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lct_deploy.errors import DeviceError
from lct_deploy.models.classifier import ImageClassifier
from lct_deploy.train.config import Execution, TrainConfig
from lct_deploy.train.files import Batch
from lct_deploy.train.ranks import Ranks, lost_peer
from lct_deploy.train.statistics import average_statistics, set_momentum


class Learner:
    """The network's weights and what the optimizer keeps beside them.

    A step's gradient is that of the mean loss over its batch, however many processes and parts share
    it.
    """

    def __init__(
        self, model: ImageClassifier, config: TrainConfig, execution: Execution, ranks: Ranks
    ) -> None:
        self.model = model
        self.optimizer = torch.optim.SGD(
            model.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=config.precision == "fp16")
        self.average: AveragedModel | None = None
        if config.ema_decay is not None:
            rule = get_ema_multi_avg_fn(config.ema_decay)
            self.average = AveragedModel(model, multi_avg_fn=rule, use_buffers=True)
        self._precision, self._parts, self._ranks = config.precision, execution.accumulate, ranks
        self._shared = _shared(model, ranks)
        forward: Callable[[Tensor], Tensor] = self._shared or model
        self._forward = torch.compile(forward) if execution.compile else forward

    @property
    def best(self) -> ImageClassifier:
        """What is tested and goes into the checkpoint: the average of the weights, where one is kept."""
        return self.model if self.average is None else cast("ImageClassifier", self.average.module)

    def step(self, batches: list[Batch], images: float, rate: float) -> Tensor:
        """Learn from this process's parts of a batch of `images`; their loss, summed over their images.

        Raises DeviceError where a GPU has too little memory.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self._ranks.device)
        for index, (pixels, labels) in enumerate(batches):
            if self._parts > 1:
                set_momentum(self.model, index, self._parts)
            total += self._backward(pixels, labels, images, last=index + 1 == len(batches))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return total

    def settle(self) -> None:
        """Make BatchNorm's statistics those of all processes."""
        average_statistics(self.model, self._ranks)
        if self.average is not None:
            average_statistics(self.average, self._ranks)

    def broken(self) -> str | None:
        """A weight or statistic that is not finite, or None."""
        state = self.model.state_dict()
        return next((name for name, value in state.items() if not bool(torch.isfinite(value).all())), None)

    def _backward(self, pixels: Tensor, labels: Tensor, images: float, *, last: bool) -> Tensor:
        """Add the gradient of one part."""
        waits = self._shared is not None and not last
        try:
            with self._shared.no_sync() if waits and self._shared else nullcontext(), lost_peer():
                with self._autocast():
                    logits = self._forward(pixels)
                loss = functional.cross_entropy(logits.float(), labels, reduction="sum")
                # DistributedDataParallel takes the mean of the processes' gradients, not their sum.
                self.scaler.scale(loss * (self._ranks.size / images)).backward()
        except torch.OutOfMemoryError as error:
            raise DeviceError(
                f"{self._ranks.device} has too little memory for {len(labels)} images at a time",
                hint="--accumulate 2 takes a batch in two parts, one after the other",
            ) from error
        return loss.detach()

    def _autocast(self) -> torch.autocast:
        kind = torch.float16 if self._precision == "fp16" else torch.bfloat16
        return torch.autocast(self._ranks.device.type, kind, enabled=self._precision != "fp32")


def _shared(model: ImageClassifier, ranks: Ranks) -> DistributedDataParallel | None:
    """The model with gradients that are averaged over all processes; each keeps its own statistics."""
    if ranks.size == 1:
        return None
    devices = [ranks.device] if ranks.device.type == "cuda" else None
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # newer torch: another name
        return DistributedDataParallel(
            model, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
        )
