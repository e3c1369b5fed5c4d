"""What the protocol needs of the models that are served."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lct_deploy.manifest import Manifest
from lct_deploy.runtime.base import RuntimeSpec


class Inference(Protocol):
    """The answer to a request."""

    @property
    def logits(self) -> NDArray[np.float32]: ...


class Duration(Protocol):
    """How often something took time, and how many nanoseconds in all."""

    @property
    def count(self) -> int: ...
    @property
    def ns(self) -> int: ...


class BatchStatistics(Protocol):
    """Executions of one batch size."""

    @property
    def batch_size(self) -> int: ...
    @property
    def compute_input(self) -> Duration: ...
    @property
    def compute_infer(self) -> Duration: ...
    @property
    def compute_output(self) -> Duration: ...


class Statistics(Protocol):
    """Totals of one version of a model; an inference is an image, an execution a batch."""

    @property
    def last_inference(self) -> int: ...  # milliseconds since 1970
    @property
    def inference_count(self) -> int: ...
    @property
    def execution_count(self) -> int: ...
    @property
    def success(self) -> Duration: ...
    @property
    def fail(self) -> Duration: ...
    @property
    def queue(self) -> Duration: ...
    @property
    def compute_input(self) -> Duration: ...
    @property
    def compute_infer(self) -> Duration: ...
    @property
    def compute_output(self) -> Duration: ...
    @property
    def batches(self) -> Sequence[BatchStatistics]: ...


class Reservation(Protocol):
    """Room in a model's queue."""

    async def infer(self, images: Sequence[NDArray[np.uint8]], deadline: float) -> Inference:
        """Logits of images (H, W, 3), by `deadline` on `time.monotonic`; raises Problems."""
        ...


class Model(Protocol):
    """One version of one model."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def manifest(self) -> Manifest: ...
    @property
    def spec(self) -> RuntimeSpec: ...
    @property
    def max_batch(self) -> int: ...
    @property
    def ready(self) -> bool: ...

    def reserve(self, count: int) -> AbstractContextManager[Reservation]:
        """Room for `count` images, taken before anything is spent on them; raises Problems of 429 and 503."""
        ...

    async def statistics(self) -> Statistics: ...


class IndexEntry(Protocol):
    """A model that is served, or could be."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def reason(self) -> str: ...


class Models(Protocol):
    """All models, by name and version."""

    @property
    def models(self) -> Sequence[Model]: ...

    def find(self, name: str, version: str | None = None) -> Model:
        """The latest version by default; raises a Problem of 404 for what is not served."""
        ...

    async def index(self) -> Sequence[IndexEntry]: ...
    async def load(self, name: str) -> None: ...
    async def unload(self, name: str) -> None: ...
