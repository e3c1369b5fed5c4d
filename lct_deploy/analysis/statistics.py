"""Contexts and gates of one block, counted as the images come: memory depends on the channels alone."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lct_deploy.analysis.base import Attention
from lct_deploy.errors import ParityError
from lct_deploy.intervals import mean_interval, spearman_interval
from lct_deploy.parity import SATURATED, rank_correlation

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """A correlation in [-1, 1] and its 95 % interval.

    Both None where one side is the same everywhere; there is no interval of too few values.
    """

    value: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class Block:
    """What one attention block did to so many images; arrays are by channel, (C,) float64.

    before, after        the context, averaged over the images
    attention            the gate, averaged; `attention_sd`, `_min` and `_max` are over the images
    of_channels          Spearman's correlation of |before| and attention over the channels
    of_images            the same of each image's own |context| and gate; the mean over the images
    constant_images      images that have no such correlation, as all their gates are equal
    saturated_low, _high shares of all gates below 0.001 and above 0.999
    """

    layer: str
    images: int
    before: Floats
    after: Floats
    attention: Floats
    attention_sd: Floats
    attention_min: Floats
    attention_max: Floats
    of_channels: Correlation
    of_images: Correlation
    constant_images: int
    saturated_low: float
    saturated_high: float

    @property
    def delta(self) -> Floats:
        """Figure 4: the absolute variation of the averaged context."""
        return np.abs(self.after - self.before)

    @property
    def order(self) -> NDArray[np.intp]:
        """The channels by their averaged context before the block, ascending."""
        return np.argsort(self.before, kind="stable")


class BlockCounter:
    """`add` the batches, then ask for the `block`."""

    def __init__(self, layer: str) -> None:
        self._layer = layer
        self._images = self._low = self._high = self._constant = 0
        self._sums = np.zeros((4, 0))  # by channel: context, context behind the block, gate, gate²
        self._extremes = np.zeros((2, 0))
        self._correlations = np.zeros(3)  # images, sum, sum of squares

    def add(self, attention: Attention) -> None:
        """Raises ParityError for values that are not finite."""
        context, gate = attention.context.astype(np.float64), attention.gate.astype(np.float64)
        if not (np.isfinite(context).all() and np.isfinite(gate).all()):
            raise ParityError(f"{self._layer}: contexts or gates are NaN or infinite")
        if not self._images:
            self._sums = np.zeros((4, gate.shape[1]))
            self._extremes = np.repeat([[np.inf], [-np.inf]], gate.shape[1], axis=1)
        self._images += len(gate)
        self._sums += [values.sum(axis=0) for values in (context, context * gate, gate, gate**2)]
        self._extremes = np.stack(
            [
                np.minimum(self._extremes[0], gate.min(axis=0)),
                np.maximum(self._extremes[1], gate.max(axis=0)),
            ]
        )
        self._low += int((gate < SATURATED).sum())
        self._high += int((gate > 1 - SATURATED).sum())
        for row, gates in zip(np.abs(context), gate, strict=True):
            self._correlate(rank_correlation(row, gates))

    def block(self) -> Block:
        before, after, attention, squares = self._sums / self._images
        low, high = self._extremes
        gates = self._images * len(attention)
        return Block(
            layer=self._layer,
            images=self._images,
            before=before,
            after=after,
            attention=attention,
            attention_sd=np.sqrt(np.maximum(squares - attention**2, 0)),
            attention_min=low,
            attention_max=high,
            of_channels=_channel_correlation(np.abs(before), attention),
            of_images=_image_correlation(*self._correlations),
            constant_images=self._constant,
            saturated_low=self._low / gates,
            saturated_high=self._high / gates,
        )

    def _correlate(self, value: float | None) -> None:
        if value is None:
            self._constant += 1
        else:
            self._correlations += [1, value, value**2]


def _channel_correlation(context: Floats, attention: Floats) -> Correlation:
    value = rank_correlation(context, attention)
    interval = None if value is None else spearman_interval(value, len(context))
    return Correlation(value=value, interval=interval)


def _image_correlation(images: float, total: float, squares: float) -> Correlation:
    if not images:
        return Correlation(value=None, interval=None)
    mean = total / images
    variance = max(squares - images * mean**2, 0.0) / max(images - 1, 1)
    return Correlation(value=mean, interval=mean_interval(mean, variance, int(images)))
