"""What tells a network's contexts and gates, whatever runs it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Attention:
    """One block for a batch: context and gate, (n, C) float32.

    The context behind the block is their product: the mean of X ⊙ gate over the pixels.
    """

    context: NDArray[np.float32]
    gate: NDArray[np.float32]


class GateSource(Protocol):
    """An opened network."""

    @property
    def channels(self) -> Mapping[str, int]:
        """Of every attention block by layer, in graph order."""
        ...

    def read(self, images: NDArray[np.uint8]) -> dict[str, Attention]:
        """Every block by layer, for images (n, H, W, 3) uint8."""
        ...

    def close(self) -> None:
        """Free what the network holds; it cannot be read afterwards."""
        ...
