"""What a training run is made of; equal configurations and seeds give equal runs."""

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Schedule = Literal["step", "cosine"]
TrainPrecision = Literal["fp32", "bf16"]


class TrainConfig(BaseModel):
    """Defaults are the paper's ImageNet recipe, without its length."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: int = Field(default=30, ge=1)
    batch_size: int = Field(default=256, ge=1)
    lr: float = Field(default=0.1, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=1e-4, ge=0)
    schedule: Schedule = "step"
    step_epochs: int = Field(default=30, ge=1)
    warmup_epochs: int = Field(default=0, ge=0)
    seed: int = 0
    precision: TrainPrecision = Field(
        default="fp32",
        description="bf16: convolutions and the classifier under autocast; weights, BatchNorm's statistics, "
        "gates and the loss stay in fp32",
    )


def learning_rate(config: TrainConfig, progress: float) -> float:
    """The rate after `progress` epochs (fractional): linear warm-up, then ÷10 steps or a cosine."""
    if progress < config.warmup_epochs:
        return config.lr * progress / config.warmup_epochs
    if config.schedule == "step":
        return config.lr * 0.1 ** int(progress // config.step_epochs)
    span = max(config.epochs - config.warmup_epochs, 1)
    return config.lr * 0.5 * (1 + math.cos(math.pi * (progress - config.warmup_epochs) / span))
