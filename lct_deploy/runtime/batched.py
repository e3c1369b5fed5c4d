"""Graphs compiled for some batch sizes, and the one that runs all others, as a single runtime."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lct_deploy.runtime.base import Runtime, RuntimeSpec, Stages


class BatchedRuntime:
    """Chooses by the batch; made by `open_bundled`, which has the bundle that says what there is."""

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
        return self._of(images).infer(images)

    def profile(self, images: NDArray[np.uint8]) -> Stages:
        return self._of(images).profile(images)

    def close(self) -> None:
        for runtime in (self._graph, *self._compiled.values()):
            runtime.close()

    def _of(self, images: NDArray[np.uint8]) -> Runtime:
        return self._compiled.get(len(images), self._graph)
