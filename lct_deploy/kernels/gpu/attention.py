# pyright: basic
# Triton's language is Python in form alone: what is written here is compiled, types are Triton's.
"""The tail of a residual block in Triton (LCT: Ruan et al., AAAI 2020, arXiv:1909.03834).

    z = mean over H, W of X                   context aggregation
    ẑ = (z − μ_g) / sqrt(var_g + ε)           (2), (3): biased variance over a group's m = C/G
    a = w ⊙ ẑ + b                             (4)
    Y = ReLU(X ⊙ σ(a) + identity)             (5), and the end of the block

A gate needs the channels of its own group only. So a program that holds whole groups reads its part of X
once, keeps it in registers, and writes Y: 3·N·C·H·W elements move with the identity, 2·N·C·H·W without,
which is the floor. Where a part does not fit (`plan`), the first of two passes leaves the sums of pixel
ranges and the second reads X again: 4·N·C·H·W and some sums.

All arithmetic is in float32, the variance is that of centred values, and every sum has a fixed order: the
same input gives the same bits.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import triton
import triton.language as tl

from lct_deploy.kernels.gpu.plan import Plan, plan
from lct_deploy.kernels.gpu.spec import KernelSpec


@triton.jit
def _normalized(z, channel, SPAN: tl.constexpr, GROUP: tl.constexpr, EPSILON: tl.constexpr):
    """Equations (2) and (3) for the means z of whole groups, zero beyond the span's channels."""
    if SPAN == GROUP:
        centred = tl.where(channel < SPAN, z - tl.sum(z) / GROUP, 0.0)
        variance = tl.sum(centred * centred) / GROUP
    else:
        # A matrix of who shares a group: m need not be a power of two.
        same = channel[:, None] // GROUP == channel[None, :] // GROUP
        centred = z - tl.sum(tl.where(same, z[None, :], 0.0), axis=1) / GROUP
        variance = tl.sum(tl.where(same, (centred * centred)[None, :], 0.0), axis=1) / GROUP
    return tl.div_rn(centred, tl.sqrt_rn(variance + EPSILON))


@triton.jit
def _gate(normalized, w, b, channel, inside):
    """Equation (4) and the σ of (5); w and b may have other types."""
    scale = tl.load(w + channel, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(b + channel, mask=inside, other=0.0).to(tl.float32)
    return tl.sigmoid(scale * normalized + shift)


@triton.jit
def _write(tile, gate, identity, y, start, offset, mask, RELU: tl.constexpr):
    """Y for one tile of X, rounded once."""
    result = tile.to(tl.float32) * gate[None, :]
    if identity is not None:
        result += tl.load(identity + start + offset, mask=mask).to(tl.float32)
    if RELU:
        result = tl.maximum(result, 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(y + start + offset, result.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _unwidened(tile):
    """The same tile, of 16-bit values, in a way that keeps the compiler from keeping it in 32.

    It would otherwise remember what the first use has converted, in twice the registers. A launch has a
    single row of programs, so its index is 0, but only the launch knows.
    """
    if tile.dtype.primitive_bitwidth == 16:
        bits = tile.to(tl.int16, bitcast=True) ^ tl.program_id(1).to(tl.int16)
        tile = bits.to(tile.dtype, bitcast=True)
    return tile


@triton.jit
def attention_one_pass(
    x,
    identity,
    w,
    b,
    y,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNEL_STRIDE: tl.constexpr,
    PIXEL_STRIDE: tl.constexpr,
    GROUP: tl.constexpr,
    SPAN: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
    EPSILON: tl.constexpr,
    RELU: tl.constexpr,
):
    """A program for each sample and each span of channels, neighbours in memory run side by side."""
    program = tl.program_id(0)
    sample = (program // (CHANNELS // SPAN)).to(tl.int64) * (CHANNELS * PIXELS)
    first = program % (CHANNELS // SPAN) * SPAN
    channel = tl.arange(0, WIDTH)
    inside = channel < SPAN
    pixel = tl.arange(0, TILE)
    start = sample + first * CHANNEL_STRIDE
    offset = pixel[:, None] * PIXEL_STRIDE + channel[None, :] * CHANNEL_STRIDE

    total = tl.zeros((TILE, WIDTH), tl.float32)
    slab = ()
    for index in tl.static_range(TILES):
        mask = inside[None, :] & (index * TILE + pixel < PIXELS)[:, None]
        tile = tl.load(x + start + offset + index * TILE * PIXEL_STRIDE, mask=mask, other=0.0)
        total += tile.to(tl.float32)
        slab = slab + (tile,)

    z = tl.sum(total, axis=0) / PIXELS
    gate = _gate(_normalized(z, channel, SPAN, GROUP, EPSILON), w, b, first + channel, inside)
    for index in tl.static_range(TILES):
        mask = inside[None, :] & (index * TILE + pixel < PIXELS)[:, None]
        at = offset + index * TILE * PIXEL_STRIDE
        _write(_unwidened(slab[index]), gate, identity, y, start, at, mask, RELU)


@triton.jit
def _part(
    CHANNELS: tl.constexpr,
    SPAN: tl.constexpr,
    PARTS: tl.constexpr,
    RANGES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """What a program of the two passes is for: sample, pixel range, span, and its part of the span."""
    program = tl.program_id(0)
    part = program % PARTS * WIDTH
    span = program // PARTS % (CHANNELS // SPAN) * SPAN
    pixel_range = program // (PARTS * (CHANNELS // SPAN)) % RANGES
    sample = (program // (PARTS * (CHANNELS // SPAN) * RANGES)).to(tl.int64)
    return sample, pixel_range, span, part


@triton.jit
def _places(
    pixel, channel, inside, PIXELS: tl.constexpr, CHANNEL_STRIDE: tl.constexpr, PIXEL_STRIDE: tl.constexpr
):
    """Where the elements of a tile lie, and which of them there are."""
    offset = pixel[:, None] * PIXEL_STRIDE + channel[None, :] * CHANNEL_STRIDE
    return offset, inside[None, :] & (pixel < PIXELS)[:, None]


@triton.jit
def attention_sums(
    x,
    partials,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNEL_STRIDE: tl.constexpr,
    PIXEL_STRIDE: tl.constexpr,
    SPAN: tl.constexpr,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
    RANGES: tl.constexpr,
):
    """First pass: sums over pixel ranges, partials of shape (N, RANGES, C)."""
    sample, pixel_range, span, part = _part(CHANNELS, SPAN, PARTS, RANGES, WIDTH)  # pyright: ignore
    channel = part + tl.arange(0, WIDTH)
    inside = channel < SPAN
    start = sample * (CHANNELS * PIXELS) + span * CHANNEL_STRIDE
    total = tl.zeros((TILE, WIDTH), tl.float32)
    for index in range(TILES):
        pixel = (pixel_range * TILES + index) * TILE + tl.arange(0, TILE)
        offset, mask = _places(pixel, channel, inside, PIXELS, CHANNEL_STRIDE, PIXEL_STRIDE)  # pyright: ignore
        total += tl.load(x + start + offset, mask=mask, other=0.0).to(tl.float32)
    row = (sample * RANGES + pixel_range) * CHANNELS + span
    tl.store(partials + row + channel, tl.sum(total, axis=0), mask=inside)


@triton.jit
def _means(
    partials, row, channel, inside, CHANNELS: tl.constexpr, PIXELS: tl.constexpr, RANGES: tl.constexpr
):
    """The ranges' sums added in their order, divided by the pixels; zero where not inside."""
    total = tl.zeros(channel.shape, tl.float32)
    for index in tl.static_range(RANGES):
        total += tl.load(partials + row + index * CHANNELS + channel, mask=inside, other=0.0)
    return total / PIXELS


@triton.jit
def attention_scale(
    x,
    identity,
    w,
    b,
    partials,
    y,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNEL_STRIDE: tl.constexpr,
    PIXEL_STRIDE: tl.constexpr,
    GROUP: tl.constexpr,
    SPAN: tl.constexpr,
    SPAN_WIDTH: tl.constexpr,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
    RANGES: tl.constexpr,
    EPSILON: tl.constexpr,
    RELU: tl.constexpr,
):
    """Second pass: the gate from the sums of all ranges, Y for the pixels of one."""
    sample, pixel_range, span, part = _part(CHANNELS, SPAN, PARTS, RANGES, WIDTH)  # pyright: ignore
    row = sample * (RANGES * CHANNELS) + span
    everyone = tl.arange(0, SPAN_WIDTH)
    z = _means(partials, row, everyone, everyone < SPAN, CHANNELS, PIXELS, RANGES)
    channel = part + tl.arange(0, WIDTH)
    inside = channel < SPAN
    if PARTS == 1:
        normalized = _normalized(z, everyone, SPAN, GROUP, EPSILON)
    else:
        # One group, of which this program scales a part.
        mean = tl.sum(z) / GROUP
        centred = tl.where(everyone < SPAN, z - mean, 0.0)
        deviation = tl.sqrt_rn(tl.sum(centred * centred) / GROUP + EPSILON)
        own = _means(partials, row, channel, inside, CHANNELS, PIXELS, RANGES)
        normalized = tl.div_rn(own - mean, deviation)
    gate = _gate(normalized, w, b, span + channel, inside)
    start = sample * (CHANNELS * PIXELS) + span * CHANNEL_STRIDE
    for index in range(TILES):
        pixel = (pixel_range * TILES + index) * TILE + tl.arange(0, TILE)
        offset, mask = _places(pixel, channel, inside, PIXELS, CHANNEL_STRIDE, PIXEL_STRIDE)  # pyright: ignore
        tile = tl.load(x + start + offset, mask=mask, other=0.0)
        _write(tile, gate, identity, y, start, offset, mask, RELU)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One kernel of a form with everything but its pointers and the number of samples."""

    kernel: Any
    arguments: tuple[str, ...]
    constants: Mapping[str, int | float | bool]
    warps: int
    programs_per_sample: int
    workspace_bytes_per_sample: int


@lru_cache
def launches(spec: KernelSpec) -> tuple[Launch, ...]:
    """The kernels for `spec` in the order in which they run."""
    chosen = plan(spec)
    if chosen.form == "one-pass":
        kernels = ((attention_one_pass, ("x", "identity", "w", "b", "y")),)
    else:
        kernels = (
            (attention_sums, ("x", "partials")),
            (attention_scale, ("x", "identity", "w", "b", "partials", "y")),
        )
    return tuple(
        Launch(
            kernel=kernel,
            arguments=tuple(name for name in arguments if spec.residual or name != "identity"),
            constants=_constants(spec, chosen, kernel),
            warps=chosen.warps,
            programs_per_sample=chosen.programs_per_sample(spec),
            workspace_bytes_per_sample=chosen.workspace_bytes_per_sample(spec),
        )
        for kernel, arguments in kernels
    )


def run(spec: KernelSpec, samples: int, pointers: Mapping[str, Any]) -> None:
    """Launch the kernels on the current device; `pointers` has the tensors by their argument's name.

    The two-pass form takes `partials`, float32, with `workspace_bytes_per_sample` bytes a sample.
    """
    for launch in launches(spec):
        arguments = {name: pointers[name] for name in launch.arguments}
        absent = {name: None for name in _pointer_names(launch.kernel) if name not in arguments}
        grid = (samples * launch.programs_per_sample,)
        launch.kernel[grid](**arguments, **absent, **launch.constants, num_warps=launch.warps)


def _pointer_names(kernel: Any) -> list[str]:
    return [name for name in kernel.arg_names if name.islower()]


def _constants(spec: KernelSpec, chosen: Plan, kernel: Any) -> dict[str, int | float | bool]:
    channels_last = spec.layout == "nhwc"
    known = {
        "CHANNELS": spec.channels,
        "PIXELS": spec.pixels,
        "CHANNEL_STRIDE": 1 if channels_last else spec.pixels,
        "PIXEL_STRIDE": spec.channels if channels_last else 1,
        "GROUP": spec.group_size,
        "SPAN": chosen.span,
        "SPAN_WIDTH": triton.next_power_of_2(chosen.span),
        "WIDTH": chosen.width,
        "PARTS": chosen.parts,
        "TILE": chosen.tile,
        "TILES": chosen.tiles,
        "RANGES": chosen.ranges,
        "EPSILON": spec.epsilon,
        "RELU": spec.relu,
    }
    return {name: known[name] for name in kernel.arg_names if name in known}
