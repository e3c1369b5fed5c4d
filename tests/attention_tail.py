"""The attention's tail for tests: tensors, the float64 reference, and a run that is watched at its edges."""

import faulthandler
import math
import multiprocessing
import os
import pickle
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lct_deploy.architecture import FAMILIES
from lct_deploy.kernels.gpu.plan import plan
from lct_deploy.kernels.gpu.spec import ElementType, KernelSpec, Layout

Array = NDArray[np.float64]
DTYPES: dict[ElementType, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
LAYOUTS: tuple[Layout, ...] = ("nhwc", "nchw")
_HALF_ULP = {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}
_SMALLEST = {"fp32": 2.0**-149, "fp16": 2.0**-24, "bf16": 2.0**-133}
GUARD = 2048  # elements before and behind every buffer


def resnet_specs() -> list[KernelSpec]:
    """Every attention of ResNet-50 and -101 at 224 pixels, in all layouts and types."""
    shapes = {
        (channels, (56 >> stage) ** 2)
        for depth in (50, 101)
        for stage, channels in enumerate(FAMILIES[depth].stage_channels)
    }
    return [
        KernelSpec(channels=channels, pixels=pixels, groups=64, dtype=dtype, layout=layout)
        for channels, pixels in sorted(shapes)
        for layout in LAYOUTS
        for dtype in DTYPES
    ]


def spec_name(spec: KernelSpec) -> str:
    return f"{spec.channels}x{spec.pixels}-{spec.layout}-{spec.dtype}"


@dataclass(frozen=True, kw_only=True)
class Case:
    """Tensors as a kernel sees them: x and identity (N, C, pixels) or (N, pixels, C), by the layout."""

    spec: KernelSpec
    samples: int
    tensors: dict[str, Tensor]

    def wide(self, name: str) -> Array:
        """A tensor in float64, images as (N, C, pixels)."""
        array = self.tensors[name].double().numpy()
        images = name in ("x", "identity") and self.spec.layout == "nhwc"
        return np.swapaxes(array, 1, 2) if images else array


def random_case(
    spec: KernelSpec, *, samples: int = 1, seed: int = 0, scale: float = 1.0, offset: float = 0.0
) -> Case:
    """Channels of different means, so that gates differ; `scale` and `offset` apply to X."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    x = normal(samples, spec.channels, spec.pixels) + normal(samples, spec.channels, 1)
    images = {"x": x * scale + offset, "identity": normal(samples, spec.channels, spec.pixels)}
    if spec.layout == "nhwc":
        images = {name: image.transpose(1, 2) for name, image in images.items()}
    tensors = {name: image.to(DTYPES[spec.dtype]).contiguous() for name, image in images.items()}
    if not spec.residual:
        del tensors["identity"]
    tensors |= {"w": normal(spec.channels), "b": normal(spec.channels)}
    return Case(spec=spec, samples=samples, tensors=tensors)


def expected(case: Case, *, rounding: float) -> tuple[Array, Array]:
    """Equations (2) to (5) in float64, and how far float32 and one rounding may be from them."""
    spec, x = case.spec, case.wide("x")
    w, b = case.wide("w")[:, None], case.wide("b")[:, None]
    z = x.mean(axis=2).reshape(case.samples, spec.groups, -1)
    centred = z - z.mean(axis=2, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=2, keepdims=True) + spec.epsilon)
    context = (centred / deviation).reshape(case.samples, -1, 1)
    gate = np.exp(-np.logaddexp(0.0, -(w * context + b)))
    result = x * gate
    identity = case.wide("identity") if spec.residual else np.zeros_like(x)
    # A mean is off by some ulps of what was summed; the division by a small deviation enlarges that.
    sums = np.abs(x).mean(axis=2).reshape(z.shape).max(axis=2, keepdims=True) / deviation
    off = np.repeat(sums, spec.group_size, axis=2).reshape(context.shape) * (1 + np.abs(context))
    gate_error = 2.0**-20 + 0.25 * np.abs(w) * 16 * 2.0**-24 * off
    tolerance = np.abs(x) * gate_error + 2.0**-23 * (np.abs(result) + np.abs(identity))
    result = result + identity
    tolerance += 1.001 * rounding * np.abs(result) + _SMALLEST[spec.dtype]
    return (np.maximum(result, 0.0) if spec.relu else result), tolerance


def check(case: Case, y: Tensor, *, interpreted: bool = True) -> None:
    """Fail unless Y, in the case's layout, is what the equations say.

    The interpreter cuts bf16 off where a GPU rounds: a unit in the last place instead of half of one.
    """
    cut_off = interpreted and case.spec.dtype == "bf16"
    wanted, tolerance = expected(case, rounding=_HALF_ULP[case.spec.dtype] * (2 if cut_off else 1))
    result = y.double().numpy()
    result = np.swapaxes(result, 1, 2) if case.spec.layout == "nhwc" else result
    excess = np.abs(result - wanted) / tolerance
    assert np.isfinite(result).all(), f"{np.count_nonzero(~np.isfinite(result))} elements are not finite"
    assert excess.max() <= 1, f"{excess.max():.3g} times the tolerance at {np.argmax(excess)}"


def run_kernel(case: Case, device: str = "cpu") -> Tensor:
    """Y as the kernels leave it in a buffer of NaN.

    NaN stands around every buffer too: an element read there would spoil Y, and one written there is
    found here.
    """
    from lct_deploy.kernels.gpu.attention import run

    spec = case.spec
    floats = case.samples * plan(spec).workspace_bytes_per_sample(spec) // 4
    empty = {"y": torch.full_like(case.tensors["x"], math.nan), "partials": torch.full((floats,), math.nan)}
    guarded = {name: _guarded(tensor, device) for name, tensor in {**case.tensors, **empty}.items()}
    run(spec, case.samples, {name: view for name, (_, view) in guarded.items()})
    for name, (buffer, view) in guarded.items():
        edges = torch.cat([buffer[:GUARD], buffer[GUARD + view.numel() :]])
        assert edges.isnan().all(), f"written outside {name}"
        if name in case.tensors:
            same = torch.equal(view.cpu().view(torch.uint8), case.tensors[name].view(torch.uint8))
            assert same, f"{name} was changed"
    return guarded["y"][1].cpu()


def _guarded(tensor: Tensor, device: str) -> tuple[Tensor, Tensor]:
    buffer = torch.full((tensor.numel() + 2 * GUARD,), math.nan, dtype=tensor.dtype, device=device)
    view = buffer[GUARD : GUARD + tensor.numel()].view(tensor.shape)
    view.copy_(tensor)
    return buffer, view


class Interpreter:
    """Triton's interpreter, in a process of its own: Triton asks for it once, when it is imported."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), _start, ({"TRITON_INTERPRET": "1"},)
        )

    def run(self, case: Case) -> Tensor:
        return self.call(run_kernel, case)

    def call(self, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """What a function that launches kernels returns there.

        Tensors travel as bytes: torch would have a pool put them into /dev/shm, which containers keep small.
        """
        call = pickle.dumps((function, arguments))
        return pickle.loads(self._pool.submit(_call, call).result())  # noqa: S301 - our own process's

    def close(self) -> None:
        self._pool.shutdown()


def _start(environment: Mapping[str, str]) -> None:
    faulthandler.enable()  # the pool itself says only that a process is gone
    os.environ.update(environment)
    torch.set_num_threads(1)


def _call(call: bytes) -> bytes:
    function, arguments = pickle.loads(call)  # noqa: S301 - our own process's
    return pickle.dumps(function(*arguments))
