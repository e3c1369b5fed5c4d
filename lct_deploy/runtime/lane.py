"""A stream with all that one inference at a time needs: buffers, and a context for each batch size."""

from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lct_deploy.runtime import cuda
from lct_deploy.runtime.base import Stages, milliseconds_of
from lct_deploy.runtime.engine import Engine, Memory
from lct_deploy.runtime.rtx_cache import RtxCache


class Lane:
    """Everything is allocated, compiled and captured when it is made: no call pays for being the first.

    A CUDA graph holds the addresses and the shape that it was captured with, and belongs to the context's
    state. So each bucket has a context and a graph of its own; they share the buffers and the activation
    memory, since a stream runs one at a time.
    """

    def __init__(self, engine: Engine, cache: RtxCache | None, *, cuda_graphs: bool) -> None:
        self._engine, self._cache, self._cuda_graphs = engine, cache, cuda_graphs
        self._held = ExitStack()
        self._stream = self._held.enter_context(cuda.new_stream())
        self._launch: dict[int, Callable[[], None]] = {}
        self._contexts: dict[int, Any] = {}
        try:
            self._allocate()
            for bucket in engine.buckets:
                self._launch[bucket] = self._prepare(bucket)
        except BaseException:
            self.close()
            raise

    def infer(self, images: NDArray[np.uint8], bucket: int) -> NDArray[np.float32]:
        """Logits of at most `bucket` images; the rows behind them hold older ones, whose logits stay here."""
        self._images[: len(images)] = images
        self._launch[bucket]()
        cuda.wait(self._stream)
        return self._logits[: len(images)].copy()

    def profile(self, images: NDArray[np.uint8], bucket: int) -> Stages:
        """The parts of an inference by the GPU's clock, without its CUDA graph: a graph is one piece.

        `enqueue` is the launch that `infer` does, the graph's where there is one.
        """
        self._images[: len(images)] = images
        enqueue = milliseconds_of(self._launch[bucket])
        cuda.wait(self._stream)
        with ExitStack() as held:
            events = [held.enter_context(cuda.new_event()) for _ in range(4)]
            cuda.record(events[0], self._stream)
            for step, event in zip(self._steps(bucket), events[1:], strict=True):
                step()
                cuda.record(event, self._stream)
            cuda.wait(self._stream)
            there, compute, back = (cuda.milliseconds_between(*pair) for pair in pairwise(events))
        return Stages(host_to_device=there, enqueue=enqueue, compute=compute, device_to_host=back)

    def close(self) -> None:
        cuda.drain(self._stream)
        self._held.close()

    def _allocate(self) -> None:
        engine, hold = self._engine, self._held.enter_context
        largest = engine.buckets[-1]
        self._images = hold(cuda.pinned_array((largest, engine.height, engine.width, 3), np.uint8))
        self._logits = hold(cuda.pinned_array((largest, engine.classes), np.float32))
        self._memory = Memory(
            stream=self._stream,
            scratch=hold(cuda.device_memory(engine.scratch_bytes, "activations")),
            images=hold(cuda.device_memory(self._images.nbytes, f"{largest} images")),
            logits=hold(cuda.device_memory(self._logits.nbytes, "logits")),
        )
        # The contexts, before the memory that they use.
        self._held.callback(self._contexts.clear)
        self._held.callback(self._launch.clear)

    def _prepare(self, bucket: int) -> Callable[[], None]:
        """What runs `bucket` images; it has run once when this returns."""
        self._contexts[bucket] = self._engine.context(
            bucket, self._memory, self._cache, cuda_graphs=self._cuda_graphs
        )
        steps = self._steps(bucket)

        def enqueue() -> None:
            for step in steps:
                step()

        enqueue()
        cuda.wait(self._stream)
        # RTX makes its graph itself.
        if self._cuda_graphs and self._cache is None:
            return self._held.enter_context(cuda.captured(self._stream, enqueue))
        return enqueue

    def _steps(self, bucket: int) -> tuple[Callable[[], None], ...]:
        """What an inference puts on the stream: images to the GPU, the network, logits to the host."""
        memory, stream, context = self._memory, self._stream, self._contexts[bucket]
        return (
            lambda: cuda.copy_to_device(memory.images, self._images[:bucket], stream),
            lambda: self._engine.enqueue(context, stream),
            lambda: cuda.copy_to_host(self._logits[:bucket], memory.logits, stream),
        )
