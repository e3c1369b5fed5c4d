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
_PAIR_LIMIT = 127.5  # 255 · 128 fits in int16, and rounding may add a half to each of the two


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

    @property
    def dequantized(self) -> NDArray[np.float32]:
        shape = (-1,) + (1,) * (self.values.ndim - 1)
        return self.values.astype(np.float32) * self.scale.reshape(shape)


def activation(range_: Range, target: Target, precision: EightBit = "int8") -> Affine:
    """Symmetric for TensorRT, uint8 with a zero point for the others; zero is always exact."""
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
    target: Target,
    precision: EightBit = "int8",
) -> Weights:
    """Symmetric per output channel, of a convolution (out, in, …) or a linear layer (out, in)."""
    limit = _PEAKS[precision]
    peak = np.abs(values).reshape(len(values), -1).max(axis=1) / limit
    if target != "tensorrt":
        peak = np.maximum(peak, _pair_peak(values) / _PAIR_LIMIT)
    # A channel that BatchNorm switched off has weights of zero and still a bias to represent.
    floor = np.abs(bias) / (input_scale * _BIAS_LIMIT)
    scale = np.maximum(np.maximum(peak, floor), _MIN_SCALE).astype(np.float32)
    shape = (-1,) + (1,) * (values.ndim - 1)
    steps = np.clip(values / scale.reshape(shape), -limit, limit)
    rounded = np.round(steps) if precision == "int8" else steps  # a float type rounds by itself
    return Weights(values=rounded.astype(_TYPES[precision]), scale=scale)


def lost_mean(values: NDArray[np.float32], small: Weights, means: NDArray[np.float64]) -> NDArray[np.float32]:
    """What rounding the weights takes from a layer's mean output, by output channel.

    E[W·x] - E[Ŵ·x] = (W - Ŵ)·E[x], with `means` (in,) of the layer's input; Nagel et al., "Data-Free
    Quantization through Weight Equalization and Bias Correction" (2019), section 4.2. That a convolution's
    input is zero beyond its border is left out. Weights of several groups, each of which reads a part of the
    input, lose nothing here.
    """
    out, inputs = values.shape[:2]
    if inputs != len(means):
        return np.zeros(out, np.float32)
    lost = values - small.dequantized
    return (lost.reshape(out, inputs, -1).sum(axis=2, dtype=np.float64) @ means).astype(np.float32)


def _pair_peak(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The largest sum of two neighbouring weights of one sign, by output channel.

    On CPUs without VNNI onnxruntime and oneDNN add the products of two bytes and two weights in int16, which
    saturates where such a sum is over 128 steps. Neighbours are input channels of one pixel; where these
    are odd in number, as the pixels of a window lie one behind the other.
    """
    flat = np.moveaxis(values, 1, -1).reshape(len(values), -1)
    pairs = np.pad(flat, ((0, 0), (0, flat.shape[1] % 2))).reshape(len(flat), -1, 2)
    positive, negative = (np.maximum(sign * pairs, 0).sum(axis=2).max(axis=1) for sign in (1, -1))
    return np.maximum(positive, negative)


def integer_bias(
    bias: NDArray[np.float32], weight_scale: NDArray[np.float32], input_scale: NDArray[np.float32]
) -> NDArray[np.int32]:
    """The bias in units of the accumulator, input scale times weight scale."""
    return np.round(bias / (weight_scale.astype(np.float64) * input_scale)).astype(np.int32)


def _scale(value: float) -> NDArray[np.float32]:
    return np.array(max(value, _MIN_SCALE), np.float32)
