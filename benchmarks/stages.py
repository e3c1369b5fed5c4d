"""Where an inference's time goes, where its runtime tells, and what it takes of the GPU's memory."""

import statistics
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from lct_deploy.runtime.base import Stages
from lct_deploy.runtime.flavours import gpu_capability

TIMES = 5  # that an inference is profiled: the medians are reported

Profile = Callable[[NDArray[np.uint8]], Stages]


def median_stages(profile: Profile, images: NDArray[np.uint8]) -> Stages:
    """Of several inferences of the same images, which have run before; raises what `profile` raises."""
    taken = [profile(images) for _ in range(TIMES)]
    return Stages(
        **{name: _median([getattr(stages, name) for stages in taken]) for name in stage_columns().values()}
    )


def stage_columns() -> Mapping[str, str]:
    """Column of a result file → field of Stages."""
    return {f"{field.name}_ms": field.name for field in fields(Stages)}


class GpuMemory:
    """What a process takes of the first GPU's memory beside its CUDA context, by what is free on the GPU.

    Only in `watched` blocks: in a measurement all other processes are halted during these.
    """

    def __init__(self) -> None:
        from lct_deploy.runtime.cuda import free_memory

        self._free, self._taken, self._peak = free_memory, 0, 0

    @property
    def peak_mib(self) -> float:
        """At the end of any block."""
        return round(self._peak / 2**20, 1)

    @contextmanager
    def watched(self) -> Generator[None]:
        before = self._free()
        yield
        self._taken += before - self._free()
        self._peak = max(self._peak, self._taken)


def gpu_memory() -> GpuMemory | None:
    """None where there is no GPU, or nothing here to ask it with."""
    return GpuMemory() if gpu_capability() is not None else None


def _median(values: list[float | None]) -> float | None:
    told = [value for value in values if value is not None]
    return round(statistics.median(told), 5) if told else None
