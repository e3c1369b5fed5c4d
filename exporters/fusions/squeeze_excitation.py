"""a = W₂ ReLU(W₁ z + b₁) + b₂, equation (1), or the same of ẑ (SE+): read from behaviour, then proven.

The ReLU splits it into two affine functions, whose values at zero and at the unit vectors are their
biases and weights, whether they were linear layers, 1×1 convolutions or had a BatchNorm between them.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from exporters.functions import NORMALIZED_SQUEEZE_EXCITATION, SQUEEZE_EXCITATION
from exporters.fusions.linear_context_transform import LinearContext, read_linear_context
from exporters.fusions.parameters import Fused, agree
from exporters.fusions.region import Array, Declined, Part, cuts, sample_size

_LAYERS = ("Conv", "Gemm", "MatMul", "Einsum")
_ELEMENTWISE = (
    "Relu", "Clip", "Max", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Gelu", "Mish", "HardSwish",
    "HardSigmoid", "Sigmoid", "Tanh", "Softplus", "Softsign", "ThresholdedRelu", "Swish", "Erf",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Affine:
    """W x + b; weight (out, in) in float64, rounded to float32 as the node will hold it."""

    weight: Array
    bias: Array


def has_layers(transform: Part) -> bool:
    """Whether there are layers with something between them: what tells an SE from an LCT."""
    return bool(_activations(transform)) and any(node.op_type in _LAYERS for node in transform.nodes)


def check(transform: Part, channels: int) -> Fused:
    """The SE or SE+ that `transform` computes; raises Declined with what it does instead."""
    before, after = _around_relu(transform)
    second = _affine(Part(after, transform.end))
    if second is None:
        raise Declined("what follows its ReLU is not one affine layer")
    first = _affine(Part(transform.start, before))
    if first is not None:
        return Fused(
            op=SQUEEZE_EXCITATION,
            channels=channels,
            parameters=_parameters(first, second),
            hidden=len(first.bias),
        )
    normal, first = _normalized(transform, before, channels)
    return Fused(
        op=NORMALIZED_SQUEEZE_EXCITATION,
        channels=channels,
        parameters=_parameters(first, second),
        groups=normal.groups,
        epsilon=normal.epsilon,
        hidden=len(first.bias),
    )


def _activations(transform: Part) -> list[str]:
    return [node.op_type for node in transform.nodes if node.op_type in _ELEMENTWISE]


def _around_relu(transform: Part) -> tuple[ir.Value, ir.Value]:
    values = cuts(transform.start, transform.end)
    for before, after in itertools.pairwise(values):
        node = after.producer()
        if node is not None and node.op_type in _ELEMENTWISE and _is_relu(Part(before, after)):
            return before, after
    found = next((op for op in _activations(transform) if op != "Relu"), None)
    if found:
        raise Declined(f"{found} stands between its layers; {SQUEEZE_EXCITATION} has a ReLU there")
    raise Declined("its ReLU is not between two layers")


def _is_relu(part: Part) -> bool:
    size = sample_size(part.start)
    if size is None or size != sample_size(part.end):
        return False
    x = np.random.default_rng(0).normal(scale=20.0, size=(4, size))
    return bool(np.array_equal(part(x), np.maximum(x, 0)))


def _affine(part: Part) -> Affine | None:
    """The affine function that `part` is, or None; exact up to float32's rounding of its parameters."""
    size = sample_size(part.start) or 0
    bias = part(np.zeros((1, size)))[0]
    weight = (part(np.eye(size)) - bias).T
    weight, bias = (np.asarray(x, dtype=np.float32).astype(np.float64) for x in (weight, bias))
    rng = np.random.default_rng(1)
    x = np.concatenate([scale * rng.normal(size=(4, size)) for scale in (1e-2, 1.0, 1e2)])
    sizes = np.abs(x) @ np.abs(weight.T) + np.abs(bias)
    proven = np.isfinite(sizes).all() and agree(part(x), x @ weight.T + bias, sizes)
    return Affine(weight=weight, bias=bias) if proven else None


def _normalized(transform: Part, before: ir.Value, channels: int) -> tuple[LinearContext, Affine]:
    """SE+: the last value that is the normalised context, and the layer from there to the ReLU.

    A scale and a shift of the normalisation (GroupNorm's) move into the layer.
    """
    declined = Declined("what precedes its ReLU is neither one affine layer nor one after a normalisation")
    for value in reversed(cuts(transform.start, before)):
        if sample_size(value) != channels:
            continue
        layer = _affine(Part(value, before))
        if layer is None:
            break
        try:
            normal = read_linear_context(Part(transform.start, value), channels)
        except Declined as reason:
            declined = Declined(f"what precedes its first layer: {reason.reason}")
            continue
        weight, bias = layer.weight * normal.w, layer.bias + layer.weight @ normal.b
        return normal, Affine(weight=weight, bias=bias)
    raise declined


def _parameters(
    first: Affine, second: Affine
) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    arrays = {"w1": first.weight, "b1": first.bias, "w2": second.weight, "b2": second.bias}
    return {name: array.astype(np.float32) for name, array in arrays.items()}
