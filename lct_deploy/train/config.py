"""What a training run is made of; equal configurations, parts of a batch and seeds give equal runs."""

import math
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Schedule = Literal["step", "cosine"]
TrainPrecision = Literal["fp32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TrainConfig(_Part):
    """All that decides a run's numbers, beside the data.

    Defaults are the paper's ImageNet recipe, but for its length and its network; None leaves the choice
    to the network (`groups`) or to the data (`image_size`).
    """

    arch: str = "lct_resnet20"
    groups: int | None = Field(default=None, ge=1)
    normalize: bool = Field(default=True, description="equations (2) and (3); off: Table 3's first ablation")
    transform: bool = Field(default=True, description="equation (4); off: Table 3's second ablation")
    w_init: float = Field(default=0.0, description="Table 5")
    b_init: float = Field(default=1.0, description="Table 5")
    image_size: int | None = Field(default=None, ge=1)
    epochs: int = Field(default=30, ge=1)
    batch_size: int = Field(default=256, ge=1, description="images of a step, of all processes together")
    lr: float = Field(default=0.1, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=1e-4, ge=0)
    schedule: Schedule = "step"
    step_epochs: int = Field(default=30, ge=1)
    warmup_epochs: int = Field(default=0, ge=0)
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    seed: int = 0
    precision: TrainPrecision = Field(
        default="fp32",
        description="bf16, fp16: convolutions and the classifier under autocast; weights, BatchNorm's "
        "statistics, gates and the loss stay in fp32. fp16 scales the loss",
    )


class Execution(_Part):
    """How a machine carries a run out: a run may be resumed with another."""

    device: Device = "auto"
    workers: int | None = Field(
        default=None, ge=0, description="processes that decode files; None: the cores"
    )
    accumulate: int = Field(
        default=1, ge=1, description="parts in which a process takes its share of a batch"
    )
    compile: bool = False
    channels_last: bool = True
    save_every: int | None = Field(default=None, ge=1, description="steps between states within an epoch")
    max_unreadable: int = Field(default=0, ge=0, description="images that may be left out")
    tensorboard: Path | None = None

    @model_validator(mode="after")
    def _check(self) -> "Execution":
        if self.compile and self.accumulate > 1:
            raise ValueError("--compile does not go with --accumulate: each part would be compiled anew")
        return self


def learning_rate(config: TrainConfig, progress: float) -> float:
    """The rate after `progress` epochs (fractional): linear warm-up, then ÷10 steps or a cosine."""
    if progress < config.warmup_epochs:
        return config.lr * progress / config.warmup_epochs
    if config.schedule == "step":
        return config.lr * 0.1 ** int(progress // config.step_epochs)
    span = max(config.epochs - config.warmup_epochs, 1)
    return config.lr * 0.5 * (1 + math.cos(math.pi * (progress - config.warmup_epochs) / span))
