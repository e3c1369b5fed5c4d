"""Latencies as they are reported: the extremes, the mean and percentiles."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds; a percentile is the least value that as many per cent of all do not exceed."""

    min: float
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, milliseconds: NDArray[np.float64]) -> "Latency | None":
        """None of no values."""
        if not len(milliseconds):
            return None
        percentiles = np.percentile(milliseconds, PERCENTILES, method="inverted_cdf")
        values = (milliseconds.min(), milliseconds.mean(), *percentiles, milliseconds.max())
        names = (field.name for field in fields(cls))
        return cls(**{name: round(float(value), 3) for name, value in zip(names, values, strict=True)})

    @classmethod
    def read(cls, columns: Mapping[str, str]) -> "Latency | None":
        """What `columns` made, as text."""
        names = [field.name for field in fields(cls)]
        if not columns[f"{names[0]}_ms"]:
            return None
        return cls(**{name: float(columns[f"{name}_ms"]) for name in names})

    @classmethod
    def columns(cls, latency: "Latency | None") -> dict[str, float | None]:
        """As columns of a result file, empty of None."""
        return {f"{field.name}_ms": getattr(latency, field.name, None) for field in fields(cls)}
