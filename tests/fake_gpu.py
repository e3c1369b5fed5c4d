"""A GPU of host memory, for machines without one: CUDA and TensorRT as far as the runtime calls them.

Streams are as lazy as they may be: what is put on one happens when somebody waits for it, and no sooner.
A result that is read too early, or memory that is used after it was freed, is therefore wrong or an error.
Engines are ONNX files, run by onnxruntime.
"""

import ctypes
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
from cuda.bindings import runtime as cudart  # pyright: ignore[reportAttributeAccessIssue] - no stubs

from lct_deploy.runtime import cuda, engines, tensorrt
from lct_deploy.runtime.flavours import Flavour, FlavourName

Work = Callable[[], object]
SUCCESS = cudart.cudaError_t.cudaSuccess
VERSION = "11.4.0"
GPU = "sm90"


class FakeDriver:
    """Stands in the place of `cuda.bindings.runtime`; enumerations are its own."""

    def __init__(self) -> None:
        self.memory: dict[int, ctypes.Array[Any]] = {}
        self.streams: dict[int, list[Work]] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.events: dict[int, float] = {}  # milliseconds at which each came
        self.calls: Counter[str] = Counter()
        self.fails: dict[str, tuple[int, Any]] = {}  # call → which one of them, with what
        self.launched = 0
        self._capturing: dict[int, int] = {}
        self._handles = itertools.count(1)
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(cudart, name)

    @property
    def live(self) -> int:
        """What has been acquired and not freed."""
        return len(self.memory) + len(self.streams) + len(self.graphs) + len(self.events)

    def fail(self, call: str, error: str, *, number: int = 1) -> None:
        """Have the `number`th use of `call` from now on return `error`."""
        self.fails[call] = (self.calls[call] + number, getattr(cudart.cudaError_t, error))

    def enqueue(self, stream: int, work: Work) -> None:
        target = self._capturing.get(stream)
        (self.streams[stream] if target is None else self.graphs[target]).append(work)

    def at(self, address: int, size: int) -> "np.ndarray[Any, np.dtype[np.uint8]]":
        """The bytes at an address, which has to lie in what is allocated."""
        for start, block in self.memory.items():
            if start <= address and address + size <= start + len(block):
                return np.ctypeslib.as_array(block)[address - start : address - start + size]
        raise AssertionError(f"{size} bytes at {address:#x} are not allocated")

    def _status(self, call: str) -> Any:
        with self._lock:
            self.calls[call] += 1
            number, error = self.fails.get(call, (0, SUCCESS))
            return error if number == self.calls[call] else SUCCESS

    def _allocate(self, call: str, size: int) -> tuple[Any, int]:
        if (status := self._status(call)) != SUCCESS:
            return status, 0
        block = (ctypes.c_uint8 * size)(*b"\xaa" * min(size, 64))
        self.memory[ctypes.addressof(block)] = block
        return status, ctypes.addressof(block)

    def _free(self, address: int) -> tuple[Any]:
        del self.memory[address]
        return (SUCCESS,)

    def cudaGetDeviceCount(self) -> tuple[Any, int]:  # noqa: N802
        return SUCCESS, 1

    def cudaGetDeviceProperties(self, _: int) -> tuple[Any, Any]:  # noqa: N802
        return SUCCESS, SimpleNamespace(name=b"Fake GPU\0\0")

    def cudaMalloc(self, size: int) -> tuple[Any, int]:  # noqa: N802
        return self._allocate("cudaMalloc", size)

    def cudaMallocHost(self, size: int) -> tuple[Any, int]:  # noqa: N802
        return self._allocate("cudaMallocHost", size)

    def cudaFree(self, address: int) -> tuple[Any]:  # noqa: N802
        return self._free(address)

    def cudaFreeHost(self, address: int) -> tuple[Any]:  # noqa: N802
        return self._free(address)

    def cudaStreamCreateWithFlags(self, _: int) -> tuple[Any, int]:  # noqa: N802
        if (status := self._status("cudaStreamCreateWithFlags")) != SUCCESS:
            return status, 0
        handle = next(self._handles)
        self.streams[handle] = []
        return status, handle

    def cudaStreamDestroy(self, stream: int) -> tuple[Any]:  # noqa: N802
        assert not self.streams.pop(stream), "destroyed with work on it"
        return (SUCCESS,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any]:  # noqa: N802
        work, self.streams[stream] = self.streams[stream], []
        for step in work:
            step()
        return (self._status("cudaStreamSynchronize"),)

    def cudaEventCreate(self) -> tuple[Any, int]:  # noqa: N802
        handle = next(self._handles)
        self.events[handle] = float("nan")
        return SUCCESS, handle

    def cudaEventDestroy(self, event: int) -> tuple[Any]:  # noqa: N802
        del self.events[event]
        return (SUCCESS,)

    def cudaEventRecord(self, event: int, stream: int) -> tuple[Any]:  # noqa: N802
        self.enqueue(stream, lambda: self.events.__setitem__(event, 1e3 * time.perf_counter()))
        return (SUCCESS,)

    def cudaEventElapsedTime(self, first: int, second: int) -> tuple[Any, float]:  # noqa: N802
        return SUCCESS, self.events[second] - self.events[first]

    def cudaMemcpyAsync(self, target: int, source: int, size: int, _: Any, stream: int) -> tuple[Any]:  # noqa: N802
        if (status := self._status("cudaMemcpyAsync")) == SUCCESS:
            self.enqueue(stream, lambda: ctypes.memmove(target, self.at(source, size).ctypes.data, size))
        return (status,)

    def cudaStreamBeginCapture(self, stream: int, _: Any) -> tuple[Any]:  # noqa: N802
        self._capturing[stream] = next(self._handles)
        self.graphs[self._capturing[stream]] = []
        return (SUCCESS,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, int]:  # noqa: N802
        graph = self._capturing.pop(stream)
        if (status := self._status("cudaStreamEndCapture")) != SUCCESS:
            del self.graphs[graph]
            return status, 0
        return status, graph

    def cudaGraphInstantiate(self, graph: int, _: int) -> tuple[Any, int]:  # noqa: N802
        if (status := self._status("cudaGraphInstantiate")) != SUCCESS:
            return status, 0
        handle = next(self._handles)
        self.graphs[handle] = list(self.graphs[graph])
        return status, handle

    def cudaGraphLaunch(self, executable: int, stream: int) -> tuple[Any]:  # noqa: N802
        self.launched += 1
        self.streams[stream] += self.graphs[executable]
        return (SUCCESS,)

    def cudaGraphDestroy(self, graph: int) -> tuple[Any]:  # noqa: N802
        del self.graphs[graph]
        return (SUCCESS,)

    def cudaGraphExecDestroy(self, executable: int) -> tuple[Any]:  # noqa: N802
        return self.cudaGraphDestroy(executable)


class FakeContext:
    """Runs one shape at a time, from and to the addresses that it was given."""

    def __init__(self, plan: "FakePlan", config: Any) -> None:
        self._plan, self.config = plan, config
        self._addresses: dict[str, int] = {}
        self._scratch = self._batch = 0
        self._range = plan.profiles[0]

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= self._plan.device_memory_size_v2
        self._scratch = address

    def set_optimization_profile_async(self, index: int, _: int) -> bool:
        self._range = self._plan.profiles[index]
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "image"
        assert shape[1:] == self._plan.image
        self._batch = shape[0]
        return self._range[0] <= self._batch <= self._range[2]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        plan = self._plan
        if plan.refuses:
            plan.log.log(ERROR, "something about this batch")
            return False
        plan.driver.enqueue(stream, self._run)
        return True

    def _run(self) -> None:
        """A context of another stream in the same activation memory would find its batch there."""
        plan, driver = self._plan, self._plan.driver
        mark = driver.at(self._scratch, 8).view(np.int64)
        mark[0] = id(self)
        size = self._batch * int(np.prod(plan.image))
        images = driver.at(self._addresses["image"], size).reshape(self._batch, *plan.image)
        logits: Any = plan.session.run(["logits"], {"image": images})[0]
        assert mark[0] == id(self), "two inferences share their activations"
        driver.at(self._addresses["logits"], logits.nbytes)[:] = np.frombuffer(logits.tobytes(), np.uint8)


class FakePlan:
    """An engine: an ONNX file with optimization profiles."""

    num_io_tensors = 2
    device_memory_size_v2 = 64

    def __init__(self, model: bytes, driver: FakeDriver, trt: Any, log: Any, profiles: Any) -> None:
        self.driver, self.trt, self.log, self.profiles = driver, trt, log, profiles
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.image = tuple(self.session.get_inputs()[0].shape[1:])
        self.classes = self.session.get_outputs()[0].shape[1]
        self.contexts: list[FakeContext] = []
        self.refuses = False

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def get_tensor_name(self, index: int) -> str:
        return ("image", "logits")[index]

    def get_tensor_dtype(self, name: str) -> Any:
        return self.trt.uint8 if name == "image" else self.trt.float32

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, *self.image) if name == "image" else (-1, self.classes)

    def get_tensor_profile_shape(self, _: str, index: int) -> list[tuple[int, ...]]:
        return [(batch, *self.image) for batch in self.profiles[index]]

    def create_runtime_config(self) -> SimpleNamespace:
        config = SimpleNamespace()
        config.set_execution_context_allocation_strategy = partial(setattr, config, "memory")
        config.create_runtime_cache = FakeRuntimeCache
        config.set_runtime_cache = partial(setattr, config, "cache")
        return config

    def create_execution_context(self, config: Any) -> FakeContext:
        """`config` is a strategy or, which RTX alone has here, a runtime configuration."""
        if cache := getattr(config, "cache", None):
            cache.kernels += b"k"
        self.contexts.append(FakeContext(self, config))
        return self.contexts[-1]


class FakeRuntimeCache:
    def __init__(self) -> None:
        self.kernels = b""

    def serialize(self) -> bytes:
        return self.kernels

    def deserialize(self, data: bytes) -> None:
        self.kernels = data


class FakeLogger:
    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


ERROR = SimpleNamespace(name="ERROR")


class FakeGpu:
    """The driver and a TensorRT of either flavour on it; `plans` are the engines that were deserialized."""

    def __init__(self, name: FlavourName = "tensorrt", profiles: Any = ((1, 2, 4),)) -> None:
        self.driver = FakeDriver()
        self.plans: list[FakePlan] = []
        self.profiles = profiles
        self.lacks_memory = False
        trt: Any = SimpleNamespace(
            ILogger=FakeLogger,
            Runtime=self._runtime,
            ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user"),
            CudaGraphStrategy=SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole", DISABLED="disabled"),
            DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager"),
            uint8="uint8",
            float32="float32",
        )
        self.flavour = Flavour(name=name, version=VERSION, module=_Hashable(trt))

    def _find(self, name: FlavourName) -> Flavour:
        assert name == self.flavour.name
        return self.flavour

    def _runtime(self, log: Any) -> SimpleNamespace:
        return SimpleNamespace(deserialize_cuda_engine=partial(self._load, log))

    def _load(self, log: Any, data: bytes) -> FakePlan | None:
        if self.lacks_memory:
            log.log(ERROR, "Error Code 2: OutOfMemory (Requested size was 9e9 bytes.)")
            return None
        try:
            plan = FakePlan(data, self.driver, self.flavour.module, log, self.profiles)
        except Exception as error:  # onnxruntime's have no base class
            log.log(ERROR, f"the plan is damaged: {error}")
            return None
        self.plans.append(plan)
        return plan

    def install(self, monkeypatch: Any, *, cache: Path) -> None:
        """Put it in the places where the runtime finds the real ones."""
        monkeypatch.setenv("LCT_CACHE", str(cache))
        monkeypatch.setattr(cuda, "cudart", self.driver)
        for module in (engines, tensorrt):
            monkeypatch.setattr(module, "load_flavour", self._find)
            monkeypatch.setattr(module, "gpu_capability", lambda: GPU)


class _Hashable:
    """A module stands in a cache's key."""

    def __init__(self, contents: SimpleNamespace) -> None:
        self.__dict__ |= vars(contents)
