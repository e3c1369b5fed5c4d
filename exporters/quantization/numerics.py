"""Scales, zero points and integer weights."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporters.quantization.histogram import Range
from exporters.quantization.placement import Target

# The smallest scale: below it the product of two, a bias's scale, would not be a normal float32.
_MIN_SCALE = 1e-18
_BIAS_LIMIT = 2**30


@dataclass(frozen=True, kw_only=True)
class Affine:
    """q = round(x / scale) + zero_point; `zero_point`'s dtype is that of q."""

    scale: NDArray[np.float32]
    zero_point: NDArray[np.uint8] | NDArray[np.int8]


@dataclass(frozen=True, kw_only=True)
class IntegerWeights:
    """Weights (out, …) in int8 and their scale per output channel."""

    values: NDArray[np.int8]
    scale: NDArray[np.float32]


def activation(range_: Range, target: Target) -> Affine:
    """uint8 with a zero point for onnxruntime, symmetric int8 for TensorRT; zero is always exact."""
    low, high = min(range_.low, 0.0), max(range_.high, 0.0)
    if target == "tensorrt":
        return Affine(scale=_scale(max(-low, high) / 127), zero_point=np.array(0, np.int8))
    scale = _scale((high - low) / 255)
    return Affine(scale=scale, zero_point=np.array(round(-low / float(scale)), np.uint8))


def weights(
    values: NDArray[np.float32], bias: NDArray[np.float32], input_scale: NDArray[np.float32]
) -> IntegerWeights:
    """Symmetric int8 per output channel.

    All eight bits are used: onnxruntime multiplies u8 by s8 exactly with VNNI or AMX. Its kernels for
    CPUs that have neither add pairs of products in int16, which saturates for large weights; seven
    bits would avoid it there and cost accuracy everywhere else.
    """
    peak = np.abs(values).reshape(len(values), -1).max(axis=1) / 127
    # A channel that BatchNorm switched off has weights of zero and still a bias to represent.
    floor = np.abs(bias) / (input_scale * _BIAS_LIMIT)
    scale = np.maximum(np.maximum(peak, floor), _MIN_SCALE).astype(np.float32)
    shape = (-1,) + (1,) * (values.ndim - 1)
    return IntegerWeights(
        values=np.clip(np.round(values / scale.reshape(shape)), -127, 127).astype(np.int8), scale=scale
    )


def integer_bias(
    bias: NDArray[np.float32], weight_scale: NDArray[np.float32], input_scale: NDArray[np.float32]
) -> NDArray[np.int32]:
    """The bias in units of the accumulator, input scale times weight scale."""
    return np.round(bias / (weight_scale.astype(np.float64) * input_scale)).astype(np.int32)


def _scale(value: float) -> NDArray[np.float32]:
    return np.array(max(value, _MIN_SCALE), np.float32)
