"""The distribution of one tensor in constant memory, and the range that a method takes from it.

onnxruntime's own collectors are not used: they print to stdout, let NaN pass, keep every activation
of a run, and their histogram grows with the ratio of the largest value to that of the first batch.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Method = Literal["image-percentile", "percentile", "entropy", "min-max"]

# Of the methods, the one that costs accuracy least where ranges are hard to choose; where they are not, all
# but entropy are equally good (docs/decisions/0007).
DEFAULT_METHOD: Method = "image-percentile"

# What `percentile` keeps: this share of the values at either end.
PERCENTILE = 0.99999

_BINS = 8192
_LEVELS = 256
_CHUNK = 1 << 16  # values that are counted at a time: those that fit a core's cache
_STRIDE = 16  # in bins, between the thresholds that `entropy` tries


class Range(NamedTuple):
    """What a quantised tensor has to represent; values outside are clipped."""

    low: float
    high: float


class Histogram:
    """Counts in equal bins over [-limit, limit); limit is a power of two that doubles on demand."""

    def __init__(self) -> None:
        self.counts = np.zeros(_BINS, np.int64)
        self.limit = 2.0**-60
        self.low, self.high = np.inf, -np.inf

    def add(self, values: NDArray[np.float32]) -> None:
        """Count `values`, which are finite."""
        low, high = float(values.min()), float(values.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        while max(-low, high) >= self.limit:
            self._double()
        scale = np.float32(_BINS / (2 * self.limit))
        flat = values.ravel()
        for start in range(0, flat.size, _CHUNK):
            bins = flat[start : start + _CHUNK] * scale
            bins += np.float32(_BINS / 2)
            counts = np.bincount(bins.astype(np.intp), minlength=_BINS)
            counts[_BINS - 1] += counts[_BINS:].sum()  # what lies just under the limit may round up to it
            self.counts += counts[:_BINS]

    def _double(self) -> None:
        """Merge neighbouring bins: exact, as the new edges are among the old ones."""
        merged = self.counts.reshape(-1, 2).sum(axis=1)
        self.counts = np.pad(merged, _BINS // 4)
        self.limit *= 2

    def percentile(self) -> Range:
        """The range that cuts off 1 - PERCENTILE of the values at either end."""
        share = np.cumsum(self.counts) / self.counts.sum()
        edges = np.linspace(-self.limit, self.limit, _BINS + 1)
        low = edges[int(np.searchsorted(share, 1 - PERCENTILE, side="right"))]
        high = edges[int(np.searchsorted(share, PERCENTILE)) + 1]
        return Range(max(float(low), self.low), min(float(high), self.high))

    def entropy(self) -> Range:
        """The threshold on |x| whose quantised distribution is nearest in KL divergence.

        Migacz, "8-bit inference with TensorRT" (2017). Zero is always exact, and in what follows a
        ReLU it is half of all values: it is left out.
        """
        half = _BINS // 2
        counts = self.counts[half:] + self.counts[half - 1 :: -1]
        counts[0] = 0
        if not counts.any():
            return Range(self.low, self.high)
        levels = _LEVELS if self.low >= 0 else _LEVELS // 2
        last = int(np.flatnonzero(counts)[-1]) + 1
        candidates = [last, *range(levels, last, _STRIDE)]  # of equals the first is taken: clip nothing
        best = min(candidates, key=lambda bins: _divergence(counts, bins, levels))
        threshold = best * self.limit / half
        return Range(max(-threshold, self.low), min(threshold, self.high))


def _divergence(counts: NDArray[np.int64], bins: int, levels: int) -> float:
    """KL(P ‖ Q): P the counts clipped to `bins`, Q those spread evenly within each of `levels`."""
    if bins <= levels:
        return 0.0 if not counts[bins:].any() else float("inf")
    kept = counts[:bins].astype(np.float64)
    starts = (np.arange(levels) * bins) // levels
    filled = kept > 0
    per_level = np.add.reduceat(kept, starts)
    width = np.add.reduceat(filled.astype(np.float64), starts)
    level = np.searchsorted(starts, np.arange(bins), side="right") - 1
    q = np.where(filled, (per_level / np.maximum(width, 1))[level], 0.0)
    p = kept.copy()
    p[-1] += counts[bins:].sum()
    if q.sum() == 0:
        return float("inf")
    # The clipped mass may fall in a bin that Q leaves empty: a small floor keeps the sum finite.
    p, q = p / p.sum(), np.maximum(q / q.sum(), 1e-9)
    seen = p > 0
    return float((p[seen] * np.log(p[seen] / q[seen])).sum())
