"""A figure of several rounds: its median, and the quartiles that say how far the rounds agree."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Quartiles:
    first: float
    median: float
    third: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Quartiles | None":
        """None of no values."""
        found = list(values)
        if not found:
            return None
        first, median, third = (float(value) for value in np.quantile(found, (0.25, 0.5, 0.75)))
        return cls(first=first, median=median, third=third)

    def over(self, other: "Quartiles") -> "Quartiles":
        """Of quotients; the quartiles are as far apart as these allow."""
        return Quartiles(
            first=self.first / other.third,
            median=self.median / other.median,
            third=self.third / other.first,
        )

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.first:.3f}, {self.third:.3f}]"
