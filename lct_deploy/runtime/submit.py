"""Inference that does not keep its caller waiting: a future for each call."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lct_deploy.runtime.base import Runtime


@dataclass(frozen=True, kw_only=True)
class Inference:
    """Logits (N, classes) with the seconds spent waiting for the runtime and computing."""

    logits: NDArray[np.float32]
    queue_seconds: float
    compute_seconds: float


class Submitter:
    """Calls of a runtime, in as many threads as it runs calls side by side.

    While one waits for the GPU, another copies its images; none takes a thread that decodes.
    """

    def __init__(self, runtime: Runtime, *, name: str) -> None:
        self._runtime = runtime
        self._threads = ThreadPoolExecutor(runtime.spec.streams, thread_name_prefix=name)

    def submit(self, images: NDArray[np.uint8]) -> "Future[Inference]":
        """Logits of (N, H, W, 3) uint8 images, in the order of the calls; errors are the future's."""
        return self._threads.submit(self._infer, images, time.perf_counter())

    def close(self) -> None:
        """Finish what has been submitted, then close the runtime."""
        self._threads.shutdown(wait=True)
        self._runtime.close()

    def _infer(self, images: NDArray[np.uint8], asked: float) -> Inference:
        started = time.perf_counter()
        logits = self._runtime.infer(images)
        done = time.perf_counter()
        return Inference(logits=logits, queue_seconds=started - asked, compute_seconds=done - started)
