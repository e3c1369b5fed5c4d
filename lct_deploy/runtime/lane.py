"""A stream with all that one inference at a time needs: buffers, and a context for each batch size."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lct_deploy.runtime import cuda
from lct_deploy.runtime.buckets import profile_of
from lct_deploy.runtime.engine import IMAGE, LOGITS, Engine
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
        self._held.close()

    def _allocate(self) -> None:
        engine, hold = self._engine, self._held.enter_context
        largest = engine.buckets[-1]
        self._stream = hold(cuda.new_stream())
        self._images = hold(cuda.pinned_array((largest, engine.height, engine.width, 3), np.uint8))
        self._logits = hold(cuda.pinned_array((largest, engine.classes), np.float32))
        self._device_images = hold(cuda.device_memory(self._images.nbytes, f"{largest} images"))
        self._device_logits = hold(cuda.device_memory(self._logits.nbytes, "logits"))
        self._scratch = hold(cuda.device_memory(engine.scratch_bytes, "activations"))
        self._held.callback(self._launch.clear)  # the contexts, before the memory that they use

    def _prepare(self, bucket: int) -> Callable[[], None]:
        """What runs `bucket` images; it has run once when this returns."""
        context = self._context(bucket)

        def enqueue() -> None:
            self._enqueue(context, bucket)

        self._held.callback(cuda.drain, self._stream)
        enqueue()
        cuda.wait(self._stream)
        # RTX makes its graph itself.
        if self._cuda_graphs and self._cache is None:
            return self._held.enter_context(cuda.captured(self._stream, enqueue))
        return enqueue

    def _context(self, bucket: int) -> Any:
        engine = self._engine
        context = engine.context(self._cache, cuda_graphs=self._cuda_graphs)
        context.set_device_memory(self._scratch, engine.scratch_bytes)
        done = (
            context.set_optimization_profile_async(profile_of(bucket, engine.ranges), self._stream)
            and context.set_input_shape(IMAGE, (bucket, engine.height, engine.width, 3))
            and context.set_tensor_address(IMAGE, self._device_images)
            and context.set_tensor_address(LOGITS, self._device_logits)
        )
        if not done:
            raise engine.failure(f"TensorRT does not accept a batch of {bucket}")
        return context

    def _enqueue(self, context: Any, bucket: int) -> None:
        cuda.copy_to_device(self._device_images, self._images[:bucket], self._stream)
        if not context.execute_async_v3(self._stream):
            raise self._engine.failure(f"TensorRT does not run a batch of {bucket}")
        cuda.copy_to_host(self._logits[:bucket], self._device_logits, self._stream)
