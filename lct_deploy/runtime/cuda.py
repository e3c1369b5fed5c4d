"""The few CUDA calls that running an engine takes: memory, streams, graphs.

What is acquired is a context manager, so that an ExitStack frees all of it in reverse, also where the
next one fails. Errors become ours, with CUDA's name for them and what mends them. It is always the first
device: `CUDA_VISIBLE_DEVICES` says which one that is.
"""

import ctypes
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
from cuda.bindings import runtime as cudart  # pyright: ignore[reportAttributeAccessIssue] - no stubs
from numpy.typing import NDArray

from lct_deploy.errors import DeviceError, LctDeployError, RuntimeUnavailableError

_UNUSABLE = (
    "cudaErrorInsufficientDriver",
    "cudaErrorNoDevice",
    "cudaErrorInitializationError",
    "cudaErrorStubLibrary",
    "cudaErrorSystemDriverMismatch",
    "cudaErrorSystemNotReady",
    "cudaErrorCompatNotSupportedOnDevice",
    "cudaErrorDevicesUnavailable",
    "cudaErrorUnknown",
)
_BROKEN = (
    "cudaErrorIllegalAddress",
    "cudaErrorMisalignedAddress",
    "cudaErrorIllegalInstruction",
    "cudaErrorInvalidPc",
    "cudaErrorHardwareStackError",
    "cudaErrorLaunchFailure",
    "cudaErrorLaunchTimeout",
    "cudaErrorAssert",
    "cudaErrorECCUncorrectable",
)
_RESTART = "restart the process: CUDA takes no more work from it; if this recurs, compile the engine again"
LESS_MEMORY = (
    "fewer calls side by side (lct-deploy serve --streams 1), an engine for smaller batches "
    "(lct-deploy compile BUNDLE --batch 1:8:16), or the end of what else nvidia-smi shows"
)
_NO_CAPTURE = "lct-deploy serve --no-cuda-graphs runs without CUDA graphs"


def check(result: tuple[Any, ...], doing: str) -> Any:
    """The values of a CUDA call, one or a tuple; raises what `failure` makes of its status."""
    status, *values = result
    if status != cudart.cudaError_t.cudaSuccess:
        raise failure(status, doing)
    return values[0] if len(values) == 1 else tuple(values)


def failure(status: Any, doing: str) -> LctDeployError:
    """RuntimeUnavailableError where there is no GPU to work with, DeviceError where it fails at its work."""
    name = cudart.cudaError_t(status).name
    _, text = cudart.cudaGetErrorString(status)
    if name in _UNUSABLE:
        return RuntimeUnavailableError(
            f"no NVIDIA GPU can be used here: {name}: {text.decode()}",
            hint="nvidia-smi shows the driver and its GPUs; in a container: docker run --gpus all",
        )
    return DeviceError(f"{doing}: {name}: {text.decode()}", hint=_hint(name))


def _hint(name: str) -> str | None:
    if name == "cudaErrorMemoryAllocation":
        return LESS_MEMORY
    if name.startswith("cudaErrorStreamCapture"):
        return _NO_CAPTURE
    return _RESTART if name in _BROKEN else None


def device_name() -> str:
    """The first GPU's name, as `NVIDIA L4`; raises RuntimeUnavailableError where there is none."""
    check(cudart.cudaGetDeviceCount(), "looking for a GPU")
    properties = check(cudart.cudaGetDeviceProperties(0), "asking the GPU for its name")
    return properties.name.decode().rstrip("\0")


def free_memory() -> int:
    """Bytes of the GPU's memory that nobody holds."""
    return check(cudart.cudaMemGetInfo(), "asking for free memory")[0]


@contextmanager
def new_stream() -> Generator[int]:
    """A stream that does not wait for the default one, by its handle."""
    flags = cudart.cudaStreamNonBlocking
    stream = check(cudart.cudaStreamCreateWithFlags(flags), "creating a stream")
    try:
        yield int(stream)
    finally:
        # Unchecked, as all that is freed below: a failure here would be that of an earlier kernel, which
        # the call that waited for it has reported.
        cudart.cudaStreamDestroy(stream)


@contextmanager
def new_event() -> Generator[int]:
    """A moment of a stream, to be recorded, by its handle."""
    event = check(cudart.cudaEventCreate(), "creating an event")
    try:
        yield int(event)
    finally:
        cudart.cudaEventDestroy(event)


def record(event: int, stream: int) -> None:
    """Put it on `stream`: it is the moment at which all work before it is done."""
    check(cudart.cudaEventRecord(event, stream), "recording an event")


def milliseconds_between(first: int, second: int) -> float:
    """By the GPU's clock, of two that have come."""
    return check(cudart.cudaEventElapsedTime(first, second), "reading the time between two events")


@contextmanager
def device_memory(size: int, purpose: str) -> Generator[int]:
    """The address of `size` bytes on the GPU."""
    pointer = check(cudart.cudaMalloc(max(size, 1)), f"allocating {size / 2**20:.0f} MiB for {purpose}")
    try:
        yield int(pointer)
    finally:
        cudart.cudaFree(pointer)


@contextmanager
def pinned_array(shape: tuple[int, ...], dtype: type[np.generic]) -> Generator[NDArray[Any]]:
    """An array in page-locked memory, which the GPU copies from and to by itself."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    pointer = check(cudart.cudaMallocHost(size), f"locking {size / 2**20:.0f} MiB of host memory")
    try:
        memory = (ctypes.c_uint8 * size).from_address(int(pointer))
        yield np.ctypeslib.as_array(memory).view(dtype).reshape(shape)
    finally:
        cudart.cudaFreeHost(pointer)


def copy_to_device(target: int, source: NDArray[Any], stream: int) -> None:
    """Put a copy on `stream`; `source` is pinned, contiguous, and stays as it is until that is done."""
    kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
    check(
        cudart.cudaMemcpyAsync(target, source.ctypes.data, source.nbytes, kind, stream),
        "copying images to the GPU",
    )


def copy_to_host(target: NDArray[Any], source: int, stream: int) -> None:
    """Put a copy on `stream`; `target` is pinned and contiguous, and holds the data once that is done."""
    kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
    check(
        cudart.cudaMemcpyAsync(target.ctypes.data, source, target.nbytes, kind, stream),
        "copying logits from the GPU",
    )


def wait(stream: int) -> None:
    """Return when all work of `stream` is done; raises DeviceError where any of it failed."""
    check(cudart.cudaStreamSynchronize(stream), "inference")


def drain(stream: int) -> None:
    """Return when `stream` does nothing any more, failed or not: before what it uses is freed."""
    cudart.cudaStreamSynchronize(stream)


@contextmanager
def captured(stream: int, enqueue: Callable[[], None]) -> Generator[Callable[[], None]]:
    """All that `enqueue` puts on `stream` as one CUDA graph; the value puts it there.

    What `enqueue` refers to lives as long as the graph, which does not hold it itself.
    """
    executable = _instantiate(stream, enqueue)

    def launch() -> None:
        check(cudart.cudaGraphLaunch(executable, stream), "launching a CUDA graph")

    try:
        yield launch
    finally:
        cudart.cudaGraphExecDestroy(executable)


def _instantiate(stream: int, enqueue: Callable[[], None]) -> Any:
    graph = _capture(stream, enqueue)
    try:
        return check(cudart.cudaGraphInstantiate(graph, 0), "instantiating a CUDA graph")
    finally:
        cudart.cudaGraphDestroy(graph)


def _capture(stream: int, enqueue: Callable[[], None]) -> Any:
    # Of this thread alone: others allocate and copy meanwhile.
    mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    check(cudart.cudaStreamBeginCapture(stream, mode), "capturing a CUDA graph")
    try:
        enqueue()
    except BaseException:
        _, graph = cudart.cudaStreamEndCapture(stream)
        if graph:
            cudart.cudaGraphDestroy(graph)
        raise
    return check(cudart.cudaStreamEndCapture(stream), "capturing a CUDA graph")
