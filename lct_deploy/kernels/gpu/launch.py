"""Embedded kernels loaded and launched through CUDA's driver, from whichever thread."""

import ctypes
import threading
from collections.abc import Mapping
from typing import Any

from cuda.bindings import driver  # pyright: ignore[reportAttributeAccessIssue] - no stubs

from lct_deploy.errors import DeviceError
from lct_deploy.kernels.gpu.spec import CompiledKernel

# What a block may have of shared memory without asking.
_DEFAULT_SHARED_BYTES = 48 * 1024


class Launcher:
    """Loads each kernel once in a CUDA context."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._functions: dict[tuple[int, CompiledKernel], Any] = {}

    def launch(
        self, kernel: CompiledKernel, pointers: Mapping[str, int], *, samples: int, stream: int
    ) -> None:
        """Enqueue a kernel on `stream`; raises DeviceError for what CUDA refuses."""
        arguments = tuple(pointers[name] for name in kernel.arguments)
        types = (ctypes.c_void_p,) * len(arguments)
        block = kernel.threads, 1, 1
        function = self.load(kernel)
        _checked(
            driver.cuLaunchKernel(
                function,
                *kernel.grid(samples),
                *block,
                kernel.shared_bytes,
                stream,
                (arguments, types),
                0,
            ),
            f"launch {kernel.name}",
        )

    def load(self, kernel: CompiledKernel) -> Any:
        """The kernel's function; a first call has to come before a stream is captured, which forbids it."""
        context = int(_checked(driver.cuCtxGetCurrent(), "tell its context"))
        with self._lock:
            if (context, kernel) not in self._functions:
                self._functions[context, kernel] = _load(kernel)
            return self._functions[context, kernel]


def _load(kernel: CompiledKernel) -> Any:
    what = f"load {kernel.name} for sm{kernel.capability}"
    module = _checked(driver.cuModuleLoadData(kernel.ptx.encode() + b"\0"), what)
    function = _checked(driver.cuModuleGetFunction(module, kernel.name.encode()), what)
    if kernel.shared_bytes > _DEFAULT_SHARED_BYTES:
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        _checked(driver.cuFuncSetAttribute(function, attribute, kernel.shared_bytes), what)
    return function


def _checked(answer: tuple[Any, ...], what: str) -> Any:
    """What a call returned after its status."""
    status, *values = answer
    if status != driver.CUresult.CUDA_SUCCESS:
        raise DeviceError(f"CUDA could not {what}: {driver.CUresult(status).name}")
    return values[0] if values else None
