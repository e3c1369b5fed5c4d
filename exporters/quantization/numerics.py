"""Scales, zero points and weights in eight bits."""

from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from exporters.quantization.histogram import Range
from exporters.quantization.placement import Target

EightBit = Literal["int8", "fp8"]

# What a symmetric tensor is stored in, and its largest value. fp8 is e4m3fn, the one with more mantissa:
# the other, e5m2, is for gradients, and TensorRT takes none of it.
_TYPES = {"int8": np.int8, "fp8": ml_dtypes.float8_e4m3fn}
_PEAKS = {"int8": 127, "fp8": 448}

# The smallest scale: below it the product of two, a bias's scale, would not be a normal float32.
_MIN_SCALE = 1e-18
_BIAS_LIMIT = 2**30


@dataclass(frozen=True, kw_only=True)
class Affine:
    """q = round(x / scale) + zero_point; `zero_point`'s dtype is that of q."""

    scale: NDArray[np.float32]
    zero_point: NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights (out, …) in eight bits and their scale per output channel."""

    values: NDArray[Any]
    scale: NDArray[np.float32]


def activation(range_: Range, target: Target, precision: EightBit = "int8") -> Affine:
    """uint8 with a zero point for onnxruntime, symmetric for TensorRT; zero is always exact."""
    low, high = min(range_.low, 0.0), max(range_.high, 0.0)
    if target == "tensorrt":
        scale = _scale(max(-low, high) / _PEAKS[precision])
        return Affine(scale=scale, zero_point=np.array(0, _TYPES[precision]))
    scale = _scale((high - low) / 255)
    return Affine(scale=scale, zero_point=np.array(round(-low / float(scale)), np.uint8))


def weights(
    values: NDArray[np.float32],
    bias: NDArray[np.float32],
    input_scale: NDArray[np.float32],
    precision: EightBit = "int8",
) -> Weights:
    """Symmetric per output channel.

    All of int8's eight bits are used: onnxruntime multiplies u8 by s8 exactly with VNNI or AMX. Its
    kernels for CPUs that have neither add pairs of products in int16, which saturates for large weights;
    seven bits would avoid it there and cost accuracy everywhere else.
    """
    limit = _PEAKS[precision]
    peak = np.abs(values).reshape(len(values), -1).max(axis=1) / limit
    # A channel that BatchNorm switched off has weights of zero and still a bias to represent.
    floor = np.abs(bias) / (input_scale * _BIAS_LIMIT)
    scale = np.maximum(np.maximum(peak, floor), _MIN_SCALE).astype(np.float32)
    shape = (-1,) + (1,) * (values.ndim - 1)
    steps = np.clip(values / scale.reshape(shape), -limit, limit)
    rounded = np.round(steps) if precision == "int8" else steps  # a float type rounds by itself
    return Weights(values=rounded.astype(_TYPES[precision]), scale=scale)


def integer_bias(
    bias: NDArray[np.float32], weight_scale: NDArray[np.float32], input_scale: NDArray[np.float32]
) -> NDArray[np.int32]:
    """The bias in units of the accumulator, input scale times weight scale."""
    return np.round(bias / (weight_scale.astype(np.float64) * input_scale)).astype(np.int32)


def _scale(value: float) -> NDArray[np.float32]:
    return np.array(max(value, _MIN_SCALE), np.float32)
