"""Whether a source computes its own gates well enough in float32 to be compared with."""

from collections.abc import Sequence

import numpy as np

from exporters.fusions.region import Declined, Part
from exporters.fusions.site import Site

_LIMIT = 1e-2  # of a: rounding the contexts to float32 alone moves it by a hundredth of that


def cancels(site: Site) -> bool:
    """Whether contexts whose spread is a thousandth of their mean, which float32 holds well, go wrong."""
    z = 10 + 1e-2 * np.random.default_rng(0).normal(size=(8, site.channels))
    z = z.astype(np.float32).astype(np.float64)
    try:
        single = Part(site.context, site.logit, double=False)(z)
    except Declined:
        return False
    exact = site.transform(z)
    return not bool(np.abs(single - exact).max() <= _LIMIT * np.abs(exact).max())


def cancellation_note(layers: Sequence[str]) -> str | None:
    """A note on the blocks whose float32 gates go wrong where contexts are far from zero."""
    if not layers:
        return None
    return (
        f"{', '.join(layers)}: the variance is computed in a way that cancels in float32 (E[x²] − E[x]²), "
        "so the file's own gates are inexact where a group's contexts lie close together; "
        "the fused node's are not, and the two may differ by that"
    )
