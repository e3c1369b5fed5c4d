"""How cost grows with the work."""

from collections.abc import Sequence

import numpy as np


def exponent(work: Sequence[float], cost: Sequence[float]) -> float:
    """The slope of log(cost) over log(work), by least squares.

    1 is proportional; below it a fixed part is spread over more work, above it cost outgrows the work.
    """
    return float(np.polyfit(np.log(work), np.log(cost), 1)[0])
