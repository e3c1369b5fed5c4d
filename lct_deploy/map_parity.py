"""How far a backbone's maps are from PyTorch's, added up image by image: they are too large to keep."""

import numpy as np
from numpy.typing import NDArray

from lct_deploy.architecture import FeatureName
from lct_deploy.errors import ParityError
from lct_deploy.manifest import MapParity
from lct_deploy.parity import MAX_LOGIT_ERROR

# Largest |Δ| as a share of the largest value of the map: that of logits, for maps are held to the same.
MAX_MAP_ERROR = MAX_LOGIT_ERROR["fp32"]

_TINY = np.finfo(np.float64).tiny


class MapMeasure:
    """One map's measures over all images added so far."""

    def __init__(self, name: FeatureName) -> None:
        self._name: FeatureName = name
        self._scale = self._error = 0.0
        self._worst = (0, 0)
        self._cosine = 1.0
        self._nonfinite = 0

    def add(self, reference: NDArray[np.float32], values: NDArray[np.float32], size: tuple[int, int]) -> None:
        """Compare (N, C, H, W) of images of `size`, height and width.

        Raises ParityError where the shapes differ.
        """
        if values.shape != reference.shape:
            raise ParityError(
                f"{self._name} of an image of {size[0]}x{size[1]} has the shape {values.shape}, "
                f"PyTorch's {reference.shape}"
            )
        finite = np.isfinite(values)
        self._nonfinite += int(finite.size - finite.sum())
        a = reference.reshape(len(reference), -1).astype(np.float64)
        b = np.where(finite, values, 0).reshape(a.shape).astype(np.float64)
        error = float(np.abs(a - b).max())
        if error >= self._error:
            self._error, self._worst = error, size
        self._scale = max(self._scale, float(np.abs(a).max()))
        self._cosine = min(self._cosine, float(_cosines(a, b).min()))

    def parity(self) -> MapParity:
        return MapParity(
            name=self._name,
            max_abs_error=self._error,
            max_abs_limit=MAX_MAP_ERROR * self._scale,
            max_rel_error=self._error / max(self._scale, _TINY),
            worst_size=self._worst,
            min_cosine=self._cosine,
            nonfinite=self._nonfinite,
        )


def _cosines(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each row of (N, values); of two that are all zero, as a ReLU may leave them, 1."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    zero = (a == 0).all(axis=1) & (b == 0).all(axis=1)
    return np.where(zero, 1.0, (a * b).sum(axis=1) / np.maximum(norms, _TINY))


def map_failures(parity: MapParity) -> list[str]:
    """Why a map does not pass; empty where it does."""
    failures = [f"{parity.name}: {parity.nonfinite} values are NaN or infinite"] if parity.nonfinite else []
    if parity.max_abs_error > parity.max_abs_limit:
        height, width = parity.worst_size
        failures.append(
            f"{parity.name}: max |Δ| is {parity.max_abs_error:.3g} on an image of {height}x{width}, "
            f"over the limit of {parity.max_abs_limit:.3g}"
        )
    return failures
