"""The extremes of one tensor in every image, and the range that most of the images keep within."""

import numpy as np
from numpy.typing import NDArray

from exporters.quantization.histogram import Range

# The share of the images that `image-percentile` lets keep all of their values, at either end.
IMAGE_SHARE = 0.95


class Extremes:
    """Eight bytes an image.

    A few images may have activations a hundred times those of all others, as a network that was trained
    briefly has: among values they are many, and a percentile of these cuts off other images or nothing.
    """

    def __init__(self) -> None:
        self._low: list[NDArray[np.float32]] = []
        self._high: list[NDArray[np.float32]] = []

    def add(self, values: NDArray[np.float32]) -> None:
        """Values (N, …) of N images."""
        flat = values.reshape(len(values), -1)
        self._low.append(flat.min(axis=1))
        self._high.append(flat.max(axis=1))

    def within(self, share: float) -> Range:
        """The range that so many of the images do not leave below, and as many not above."""
        low, high = np.concatenate(self._low), np.concatenate(self._high)
        return Range(float(np.quantile(low, 1 - share)), float(np.quantile(high, share)))
