# pyright: basic
# TensorRT's decorators read annotations at run time; its types are not there where it is not installed.
"""The attention as a plugin of TensorRT's decorator API, compiled ahead of time into the engine.

TensorRT launches the kernel itself: an engine needs neither this file nor Python. It is one kernel with
pointers to the inputs and then to the output, and takes no workspace.
"""

import tensorrt as trt
import tensorrt.plugin as trtp

from lct_deploy.errors import ExportError, RuntimeUnavailableError
from lct_deploy.kernels.gpu.embedded import EmbeddedKernels, read_kernels

_ID = "lct::LinearContextTransform"
# (N, H, W, C) in memory: the plain format is for float32 alone; that of halves pads C to eight.
_TENSORS = {"fp32": ("FP32", "HWC"), "fp16": ("FP16", "HWC8"), "bf16": ("BF16", "HWC8")}


def register() -> None:
    """Define the plugin; raises RuntimeUnavailableError for a TensorRT before 10.9."""
    if not hasattr(trtp, "aot_impl"):
        raise RuntimeUnavailableError(
            f"TensorRT {trt.__version__} cannot embed a plugin's kernels in an engine, 10.9 or newer can",
            hint="pip install -U tensorrt, or --attention native",
        )
    trtp.register(_ID)(_describe)
    trtp.autotune(_ID)(_formats)
    trtp.aot_impl(_ID)(_implement)


def _describe(x: trtp.TensorDesc, w: trtp.TensorDesc, b: trtp.TensorDesc, kernels: str) -> trtp.TensorDesc:
    del w, b, kernels
    return x.like()


def _formats(
    x: trtp.TensorDesc,
    w: trtp.TensorDesc,
    b: trtp.TensorDesc,
    kernels: str,
    outputs: tuple[trtp.TensorDesc],
) -> list[trtp.AutoTuneCombination]:
    del x, w, b, outputs
    tensor, layout = _TENSORS[read_kernels(kernels).spec.dtype]
    return [
        trtp.AutoTuneCombination(f"{tensor}, FP32, FP32, {tensor}", f"{layout}, LINEAR, LINEAR, {layout}")
    ]


def _implement(
    x: trtp.TensorDesc,
    w: trtp.TensorDesc,
    b: trtp.TensorDesc,
    kernels: str,
    outputs: tuple[trtp.TensorDesc],
    tactic: int,
) -> tuple[str, str, trtp.KernelLaunchParams, trtp.SymExprs]:
    del w, b, outputs, tactic
    embedded = read_kernels(kernels)
    (kernel,) = embedded.kernels
    launch = trtp.KernelLaunchParams()
    launch.grid_x = x.shape_expr[0] * kernel.programs_per_sample
    launch.block_x = kernel.threads
    launch.shared_mem = kernel.shared_bytes
    return kernel.name, kernel.ptx, launch, trtp.SymIntExprs(0)
