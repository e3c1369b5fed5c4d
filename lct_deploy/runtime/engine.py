"""An engine in memory: its batches, its tensors, and the contexts that run it."""

import functools
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lct_deploy.errors import BundleError, DeviceError
from lct_deploy.runtime.buckets import BatchRange, bucket_sizes
from lct_deploy.runtime.flavours import Flavour
from lct_deploy.runtime.rtx_cache import RtxCache

IMAGE, LOGITS = "image", "logits"


@functools.cache
def flavour_log(flavour: Flavour) -> Any:
    """The last errors of a flavour, `errors`: TensorRT keeps to the first logger that it is given."""

    class Log(flavour.module.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.errors: deque[str] = deque(maxlen=20)

        def log(self, severity: Any, message: str) -> None:
            if severity in (flavour.module.ILogger.ERROR, flavour.module.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

    return Log()


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

    def context(self, cache: RtxCache | None, *, cuda_graphs: bool) -> Any:
        """A context without activation memory, which `set_device_memory` gives it.

        On RTX it makes its own CUDA graph, and compiles its kernels through `cache`.
        """
        trt = self.flavour.module
        config = self.plan.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if cache is not None:
            graphs = trt.CudaGraphStrategy
            config.cuda_graph_strategy = graphs.WHOLE_GRAPH_CAPTURE if cuda_graphs else graphs.DISABLED
            # A context runs one shape: better its own kernels at once than general ones for the first calls.
            specialization = trt.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = specialization.EAGER
            cache.attach(config)
        context = self.plan.create_execution_context(config)
        if context is None:
            raise self.failure("TensorRT makes no execution context")
        return context

    def failure(self, what: str) -> DeviceError:
        """`what`, with what TensorRT said about it."""
        return DeviceError(f"{what}: {_said(self.flavour)}", hint=_hint(_said(self.flavour)))


def load_engine(path: Path, flavour: Flavour, *, rebuild: str | None) -> Engine:
    """Deserialize the engine at `path`.

    Raises BundleError, with the command `rebuild`, where it is damaged or not one of ours.
    """
    log = flavour_log(flavour)
    log.errors.clear()
    runtime = flavour.module.Runtime(log)
    plan = runtime.deserialize_cuda_engine(path.read_bytes())
    if plan is None:
        raise BundleError(f"{path}: {flavour.name} cannot load this engine: {_said(flavour)}", hint=rebuild)
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


def _said(flavour: Flavour) -> str:
    return "; ".join(flavour_log(flavour).errors) or "it does not say why"


def _hint(said: str) -> str | None:
    out_of_memory = "out of memory" in said.lower() or "outofmemory" in said.lower()
    return "an engine for smaller batches, or fewer --streams, takes less memory" if out_of_memory else None
