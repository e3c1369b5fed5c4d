"""What a fusion hands over: the node that computes what the piece of graph did."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporters.fusions.region import Array

# Float64 reads a float32 parameter to the bit; what is derived from several (an unbiased variance, an
# affine GroupNorm before a layer) is rounded to float32, 6e-8 of its size. A sum of such terms stays
# within 1e-6 of the sum of their sizes; the formula of another attention is off by far more.
TOLERANCE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Fused:
    """An operator of domain `lct` with its parameters, in the order of its inputs."""

    op: str
    channels: int
    parameters: dict[str, NDArray[np.float32]]
    groups: int | None = None
    epsilon: float | None = None
    hidden: int | None = None

    @property
    def attributes(self) -> dict[str, int | float]:
        if self.groups is None or self.epsilon is None:
            return {}
        return {"groups": self.groups, "epsilon": self.epsilon}


def agree(found: Array, expected: Array, size: Array) -> bool:
    """Whether answers agree within TOLERANCE of `size`, the sum of the sizes of their terms."""
    return bool(np.all(np.abs(found - expected) <= TOLERANCE * size + 1e-12))


def shortest_float32(value: float) -> float:
    """1e-05 for what float32 stores as 9.999999747378752e-06."""
    return float(str(np.float32(value)))
