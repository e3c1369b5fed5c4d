"""An engine in memory: its batches, its tensors, and the contexts that run it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lct_deploy.errors import BundleError, DeviceError
from lct_deploy.runtime.buckets import BatchRange, bucket_sizes, profile_of
from lct_deploy.runtime.cuda import LESS_MEMORY
from lct_deploy.runtime.flavours import Flavour
from lct_deploy.runtime.rtx_cache import RtxCache
from lct_deploy.runtime.trt_log import Messages, listening, logger

IMAGE, LOGITS = "image", "logits"


@dataclass(frozen=True, kw_only=True)
class Memory:
    """A stream, and addresses on the GPU: of the activations, the images and the logits."""

    stream: int
    scratch: int
    images: int
    logits: int


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A deserialized engine whose tensors are those of our graphs."""

    flavour: Flavour
    plan: Any
    ranges: tuple[BatchRange, ...]
    height: int
    width: int
    classes: int

    @property
    def buckets(self) -> tuple[int, ...]:
        return bucket_sizes(self.ranges)

    @property
    def scratch_bytes(self) -> int:
        """What a context needs for its activations."""
        return self.plan.device_memory_size_v2

    def context(self, bucket: int, memory: Memory, cache: RtxCache | None, *, cuda_graphs: bool) -> Any:
        """What runs `bucket` images in `memory`.

        On RTX it makes its own CUDA graph, and compiles its kernels through `cache`.
        """
        with listening(self.flavour) as messages:
            context = self.plan.create_execution_context(self._settings(cache, cuda_graphs=cuda_graphs))
            if context is None or not self._bind(context, bucket, memory):
                raise _failure(f"TensorRT does not prepare a batch of {bucket}", messages)
        return context

    def enqueue(self, context: Any, stream: int) -> None:
        """Put an inference on `stream`; raises DeviceError, with TensorRT's reason, where it will not."""
        with listening(self.flavour) as messages:
            done = context.execute_async_v3(stream)
        if not done:
            raise _failure("TensorRT does not run this batch", messages)

    def _settings(self, cache: RtxCache | None, *, cuda_graphs: bool) -> Any:
        """What a context is made with: where its activations lie, and on RTX how it makes kernels and graphs.

        TensorRT is told the first alone: that it takes since 10.0, configurations only since later.
        """
        trt = self.flavour.module
        in_our_memory = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if cache is None:
            return in_our_memory
        config = self.plan.create_runtime_config()
        config.set_execution_context_allocation_strategy(in_our_memory)
        graphs = trt.CudaGraphStrategy
        config.cuda_graph_strategy = graphs.WHOLE_GRAPH_CAPTURE if cuda_graphs else graphs.DISABLED
        # A context runs one shape: better its own kernels at once than general ones for the first calls.
        specialization = trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = specialization.EAGER
        cache.attach(config)
        return config

    def _bind(self, context: Any, bucket: int, memory: Memory) -> bool:
        context.set_device_memory(memory.scratch, self.scratch_bytes)
        return (
            context.set_optimization_profile_async(profile_of(bucket, self.ranges), memory.stream)
            and context.set_input_shape(IMAGE, (bucket, self.height, self.width, 3))
            and context.set_tensor_address(IMAGE, memory.images)
            and context.set_tensor_address(LOGITS, memory.logits)
        )


def load_engine(path: Path, flavour: Flavour, *, rebuild: str, host_code: bool = False) -> Engine:
    """Deserialize the engine at `path`; `host_code` lets it bring code for the CPU.

    Raises BundleError, with the command `rebuild`, where it is damaged or not one of ours; DeviceError
    where the GPU has too little memory for it.
    """
    runtime = flavour.module.Runtime(logger(flavour))
    # A version-compatible engine brings a part of the TensorRT that built it.
    runtime.engine_host_code_allowed = host_code
    with listening(flavour) as messages:
        plan = runtime.deserialize_cuda_engine(path.read_bytes())
    if plan is None and _lacks_memory(messages):
        raise _failure(f"{path}: {flavour.name} cannot load this engine", messages)
    if plan is None:
        raise BundleError(f"{path}: {flavour.name} cannot load this engine: {_said(messages)}", hint=rebuild)
    problem = _tensor_problem(plan, flavour.module)
    if problem:
        raise BundleError(f"{path}: not an engine of a bundle's graph: {problem}", hint=rebuild)
    _, height, width, _ = plan.get_tensor_shape(IMAGE)
    profiles = (plan.get_tensor_profile_shape(IMAGE, i) for i in range(plan.num_optimization_profiles))
    ranges = tuple(BatchRange(min=low[0], opt=best[0], max=high[0]) for low, best, high in profiles)
    return Engine(
        flavour=flavour,
        plan=plan,
        ranges=ranges,
        height=height,
        width=width,
        classes=plan.get_tensor_shape(LOGITS)[1],
    )


def _tensor_problem(plan: Any, trt: Any) -> str | None:
    """What is wrong with an engine's inputs and outputs; None where nothing is."""
    names = [plan.get_tensor_name(i) for i in range(plan.num_io_tensors)]
    if sorted(names) != [IMAGE, LOGITS]:
        return f"its tensors are {', '.join(names)}"
    types = (plan.get_tensor_dtype(IMAGE), plan.get_tensor_dtype(LOGITS))
    if types != (trt.uint8, trt.float32):
        return f"its tensors are of {types[0]} and {types[1]}"
    return None


def _failure(what: str, messages: Messages) -> DeviceError:
    hint = LESS_MEMORY if _lacks_memory(messages) else None
    return DeviceError(f"{what}: {_said(messages)}", hint=hint)


def _lacks_memory(messages: Messages) -> bool:
    said = _said(messages).lower().replace(" ", "")
    return "outofmemory" in said or "cudaerrormemoryallocation" in said


def _said(messages: Messages) -> str:
    return "; ".join(messages.reasons()) or "it does not say why"
