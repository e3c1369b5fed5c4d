"""Where an estimate lies with 95 % confidence."""

import math

_NORMAL = 1.959963984540054  # the quantile of a normal distribution that leaves 2.5 % on either side


def wilson_interval(right: int, images: int) -> tuple[float, float]:
    """Of a share, in [0, 1]: Wilson's interval, which holds near 0 and 1 too."""
    z2 = _NORMAL**2
    share = right / images
    centre = (share + z2 / (2 * images)) / (1 + z2 / images)
    half = _NORMAL / (1 + z2 / images) * math.sqrt(share * (1 - share) / images + z2 / (4 * images**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def spearman_interval(value: float, count: int) -> tuple[float, float] | None:
    """Of Spearman's correlation of `count` pairs (Bonett and Wright, Psychometrika 65, 2000).

    tanh(artanh ρ ± 1.96 sqrt((1 + ρ²/2) / (count - 3))); None of fewer than four pairs.
    """
    if count < 4:
        return None
    if abs(value) > 1 - 1e-12:
        return value, value
    centre, half = math.atanh(value), _NORMAL * math.sqrt((1 + value**2 / 2) / (count - 3))
    return math.tanh(centre - half), math.tanh(centre + half)


def mean_interval(mean: float, variance: float, count: int) -> tuple[float, float] | None:
    """Of the mean of `count` independent values, by the normal approximation; None of fewer than two.

    `variance` is the unbiased one of a single value.
    """
    if count < 2:
        return None
    half = _NORMAL * math.sqrt(variance / count)
    return mean - half, mean + half
