"""A stream with all that one inference at a time needs: buffers, and a context for each batch size."""

from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from lct_deploy.runtime import cuda
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
        self._held.callback(self._launch.clear)  # the contexts, before the memory that they use

    def _prepare(self, bucket: int) -> Callable[[], None]:
        """What runs `bucket` images; it has run once when this returns."""
        memory, stream = self._memory, self._stream
        context = self._engine.context(bucket, memory, self._cache, cuda_graphs=self._cuda_graphs)

        def enqueue() -> None:
            cuda.copy_to_device(memory.images, self._images[:bucket], stream)
            self._engine.enqueue(context, stream)
            cuda.copy_to_host(self._logits[:bucket], memory.logits, stream)

        enqueue()
        cuda.wait(stream)
        # RTX makes its graph itself.
        if self._cuda_graphs and self._cache is None:
            return self._held.enter_context(cuda.captured(stream, enqueue))
        return enqueue
