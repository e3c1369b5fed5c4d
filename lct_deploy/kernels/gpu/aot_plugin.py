# pyright: basic
# TensorRT's decorators read annotations at run time; its types are not there where it is not installed.
"""The attention as plugins of TensorRT's decorator API, compiled ahead of time into the engine.

TensorRT launches the kernel itself: an engine needs neither this file nor Python. A plugin is one kernel
with pointers to the inputs and then to the output, and takes no workspace.
"""

from tensorrt.plugin import (  # pyright: ignore[reportMissingImports]
    AutoTuneCombination,
    KernelLaunchParams,
    SymExprs,
    SymIntExprs,
    TensorDesc,
    aot_impl,
    autotune,
)
from tensorrt.plugin import register as define  # pyright: ignore[reportMissingImports]

from lct_deploy.errors import ExportError
from lct_deploy.kernels.gpu.embedded import ATTENTION, NAMESPACE, TAIL, read_kernels

# Channels last. Halves have a second order, the same in memory where 8 divides C: TensorRT times both.
_TENSORS = {"fp32": ("FP32", "HWC"), "fp16": ("FP16", "HWC|HWC8"), "bf16": ("BF16", "HWC|HWC8")}

Kernel = tuple[str, str, KernelLaunchParams, SymExprs]


def register(ops: tuple[str, ...]) -> None:
    """Define the plugins."""
    for op in ops:
        describe, formats, implement = _FUNCTIONS[op]
        name = f"{NAMESPACE}::{op}"
        define(name)(describe)
        autotune(name)(formats)
        aot_impl(name)(implement)


def _describe(x: TensorDesc, w: TensorDesc, b: TensorDesc, kernels: str) -> TensorDesc:
    return x.like()


def _formats(x, w, b, kernels: str, outputs: tuple[TensorDesc]) -> list[AutoTuneCombination]:
    return _combinations(ATTENTION, kernels)


def _implement(x, w, b, kernels: str, outputs: tuple[TensorDesc], tactic: int) -> Kernel:
    return _launch(ATTENTION, kernels, x)


def _describe_tail(
    x: TensorDesc, identity: TensorDesc, w: TensorDesc, b: TensorDesc, kernels: str
) -> TensorDesc:
    return x.like()


def _formats_tail(x, identity, w, b, kernels: str, outputs: tuple[TensorDesc]) -> list[AutoTuneCombination]:
    return _combinations(TAIL, kernels)


def _implement_tail(x, identity, w, b, kernels: str, outputs: tuple[TensorDesc], tactic: int) -> Kernel:
    return _launch(TAIL, kernels, x)


_FUNCTIONS = {
    ATTENTION: (_describe, _formats, _implement),
    TAIL: (_describe_tail, _formats_tail, _implement_tail),
}


def _combinations(op: str, kernels: str) -> list[AutoTuneCombination]:
    """The types and orders of the node's tensors, all that there are."""
    embedded = read_kernels(kernels, op)
    tensor, order = _TENSORS[embedded.spec.dtype]
    places = [("FP32", "LINEAR") if name in ("w", "b") else (tensor, order) for name in embedded.tensors]
    types, orders = (", ".join(parts) for parts in zip(*places, strict=True))
    return [AutoTuneCombination(types, orders)]


def _launch(op: str, kernels: str, x: TensorDesc) -> Kernel:
    """The kernel and how TensorRT starts it; it takes no scalars beside the tensors."""
    embedded = read_kernels(kernels, op)
    first = embedded.kernels[0]
    if len(embedded.kernels) > 1 or first.arguments != embedded.tensors:
        raise ExportError(
            f"{op}: TensorRT embeds no plugin of more than one kernel", hint="--attention native"
        )
    launch = KernelLaunchParams()
    launch.grid_x = x.shape_expr[0] * first.programs_per_sample
    launch.block_x = first.threads
    launch.shared_mem = first.shared_bytes
    return first.name, first.ptx, launch, SymIntExprs(0)
