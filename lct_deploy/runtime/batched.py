"""Graphs compiled for some batch sizes, and the one that runs all others, as a single runtime."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lct_deploy.runtime.base import Runtime, RuntimeSpec, Stages, milliseconds_of


class BatchedRuntime:
    """Chooses by the batch; made by `open_bundled`, which has the bundle that says what there is.

    More images than the largest compiled batch run as several of it, and a rest.
    """

    def __init__(self, graph: Runtime, compiled: Mapping[int, Runtime]) -> None:
        self._graph, self._compiled = graph, dict(compiled)
        first = next(iter(self._compiled.values())).spec
        self._spec = dataclasses.replace(
            graph.spec, versions=first.versions, compiled_batches=tuple(sorted(compiled))
        )

    @property
    def spec(self) -> RuntimeSpec:
        return self._spec

    def infer(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        largest = self._spec.compiled_batches[-1]
        parts = [images[start : start + largest] for start in range(0, len(images), largest)]
        if len(parts) <= 1:
            return self._of(images).infer(images)
        return np.concatenate([self._of(part).infer(part) for part in parts])

    def profile(self, images: NDArray[np.uint8]) -> Stages:
        return Stages(compute=milliseconds_of(lambda: self.infer(images)))

    def close(self) -> None:
        for runtime in (self._graph, *self._compiled.values()):
            runtime.close()

    def _of(self, images: NDArray[np.uint8]) -> Runtime:
        return self._compiled.get(len(images), self._graph)
