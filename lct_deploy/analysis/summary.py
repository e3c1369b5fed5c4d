"""`summary.json`: the figures behind the plots, and what they say about eight bits."""

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from lct_deploy.analysis.statistics import Block, Correlation
from lct_deploy.evaluation.images import Unreadable

_STEP = 1 / 255  # of an eight-bit gate, whose range is that of a sigmoid


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class CorrelationSummary(_Part):
    """Spearman's rank correlation; null where one side is the same everywhere."""

    value: float | None
    interval: tuple[float, float] | None = Field(description="95 %; null of too few values")


class ContextSummary(_Part):
    """The averaged context over the channels."""

    sd: float
    mean_absolute: float
    peak: float | None = Field(
        description="the largest absolute value over the median one: an eight-bit range of the whole tensor "
        "is as wide as its largest channel; null where the median is 0"
    )


class GateSummary(_Part):
    """The gates of all images and channels. One step is that of an eight-bit gate, 1/255."""

    mean: float
    min: float
    max: float
    saturated_low: float = Field(description="share below 0.001, in percent")
    saturated_high: float = Field(description="share above 0.999, in percent")
    shut: int = Field(description="dead channels: below half a step in every image, 0 in eight bits")
    open: int = Field(description="channels within half a step of 1 in every image, 1 in eight bits")
    constant: int = Field(description="channels that move by less than a step over all images")


class BlockSummary(_Part):
    """One attention block."""

    layer: str
    channels: int
    before: ContextSummary
    after: ContextSummary
    delta: float = Field(description="absolute variation of the averaged context, mean over the channels")
    gates: GateSummary
    of_channels: CorrelationSummary = Field(
        description="of the averaged |context| and attention over the channels; Bonett and Wright's interval"
    )
    of_images: CorrelationSummary = Field(
        description="of |context| and gate over the channels, mean over the images; normal interval"
    )
    constant_images: int = Field(description="images without such a correlation: all their gates are equal")


class ModelSummary(_Part):
    """One network."""

    name: str
    source: str
    runtime: str
    images: int
    unreadable: tuple[Unreadable, ...]
    drawn: tuple[str, ...] = Field(description="the blocks that the plots show")
    blocks: tuple[BlockSummary, ...]


class Summary(_Part):
    """The document that `lct-deploy analyze` writes, and prints with --json."""

    data: str
    models: tuple[ModelSummary, ...]


def summarize(block: Block) -> BlockSummary:
    low, high = block.attention_min, block.attention_max
    return BlockSummary(
        layer=block.layer,
        channels=len(block.attention),
        before=_context(block.before),
        after=_context(block.after),
        delta=float(block.delta.mean()),
        gates=GateSummary(
            mean=float(block.attention.mean()),
            min=float(low.min()),
            max=float(high.max()),
            saturated_low=100 * block.saturated_low,
            saturated_high=100 * block.saturated_high,
            shut=int((high < _STEP / 2).sum()),
            open=int((low > 1 - _STEP / 2).sum()),
            constant=int((high - low < _STEP).sum()),
        ),
        of_channels=_correlation(block.of_channels),
        of_images=_correlation(block.of_images),
        constant_images=block.constant_images,
    )


def _context(values: NDArray[np.float64]) -> ContextSummary:
    absolute = np.abs(values)
    median = float(np.median(absolute))
    return ContextSummary(
        sd=float(values.std()),
        mean_absolute=float(absolute.mean()),
        peak=float(absolute.max()) / median if median else None,
    )


def _correlation(correlation: Correlation) -> CorrelationSummary:
    return CorrelationSummary(value=correlation.value, interval=correlation.interval)
