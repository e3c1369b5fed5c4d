"""The pattern: Mul(X, gate) where the gate has fewer positions than X, as attention has."""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from exporters.fusions.region import Declined, sample_shape

BROADCASTS = ("Expand", "Tile")
RESHAPES = (
    "Identity",
    "Cast",
    "CastLike",
    "Reshape",
    "Unsqueeze",
    "Squeeze",
    "Flatten",
    "Transpose",
    "Dropout",
)
# What bounds a gate; Exp stands in a sigmoid that is spelled out.
ACTIVATIONS = ("Sigmoid", "HardSigmoid", "Tanh", "Softmax", "Clip", "Exp", "Softsign")
_AFFINE = ("Mul", "Add", "Sub", "Div", "Neg", "Reciprocal", "Min", "Max")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A Mul that may be the end of an attention; `gate` is what scales X, before it is broadcast."""

    scale: ir.Node
    x: ir.Value
    gate: ir.Value

    @property
    def last(self) -> ir.Node | None:
        """The last operator that computes something."""
        node = self.gate.producer()
        while node is not None and node.op_type in RESHAPES and node.inputs[0] is not None:
            node = node.inputs[0].producer()
        return node

    @property
    def activation(self) -> ir.Node | None:
        """The operator that bounds the gate, looked for past reshapes and constants; None if none does."""
        value = self.gate
        while (node := value.producer()) is not None:
            if node.op_type in ACTIVATIONS:
                return node
            variable = [x for x in node.inputs if x is not None and x.const_value is None]
            if node.op_type not in (*RESHAPES, *BROADCASTS, *_AFFINE) or not variable:
                return None
            value = variable[0]
            if len(variable) > 1 and node.op_type in _AFFINE:
                return None
        return None


def candidates(graph: ir.Graph) -> Iterator[Candidate]:
    """All of a graph, in its order; the caller may replace each before it asks for the next."""
    for node in list(graph):
        if node.op_type == "Mul" and node.domain == "":
            left, right = node.inputs
            for x, factor in ((left, right), (right, left)):
                if x is not None and factor is not None and _scales(x, gate := _before_broadcast(factor)):
                    yield Candidate(scale=node, x=x, gate=gate)
                    break


def check_shapes(candidate: Candidate) -> None:
    """Raises Declined where the gate is not one number for each channel of (N, C, H, W)."""
    x, gate = sample_shape(candidate.x), _gate_shape(candidate.x, candidate.gate)
    if x is None or gate is None or len(x) != 3:
        raise Declined(f"it scales a tensor of shape {candidate.x.shape}, not (N, C, H, W)")
    channels, height, width = gate
    if (channels, height, width) == (x[0], 1, 1):
        return
    if (channels, height) == (1, 1) and width > 1:
        raise Declined("its gate varies along the last axis only: attention along W, or channels last")
    if channels == 1:
        raise Declined(
            "spatial attention: one gate for each position, the same for all channels"
            if height * width > 1
            else "one gate for all channels"
        )
    axis = "H" if height > 1 else "W"
    raise Declined(f"its gate varies along {axis}: the mean is over one spatial axis only")


def _scales(x: ir.Value, gate: ir.Value) -> bool:
    """Whether `gate` has one number where `x` has many positions, or could have (1×1 positions)."""
    shape, factor = sample_shape(x), _gate_shape(x, gate)
    if shape is None or factor is None or len(shape) not in (2, 3) or gate.const_value is not None:
        return False
    if x.const_value is not None or shape[0] == 1:
        return False
    positions = list(zip(shape[1:], factor[1:], strict=True))
    fewer = any(own > 1 and other == 1 for own, other in positions)
    fits = all(other in (own, 1) for own, other in zip(shape, factor, strict=True))
    return fits and (fewer or (len(shape) == 3 and factor == shape == (shape[0], 1, 1)) or factor[0] == 1)


def _gate_shape(x: ir.Value, gate: ir.Value) -> tuple[int, ...] | None:
    """The gate's dimensions after the batch's, aligned with those of `x`."""
    if x.shape is None or gate.shape is None or len(gate.shape) > len(x.shape):
        return None
    rank = len(x.shape)
    dims = [1] * (rank - len(gate.shape)) + list(gate.shape)
    return (
        tuple(d for d in dims[1:] if isinstance(d, int))
        if all(isinstance(d, int) for d in dims[1:])
        else None
    )


def _before_broadcast(value: ir.Value) -> ir.Value:
    while (
        (node := value.producer()) is not None and node.op_type in BROADCASTS and node.inputs[0] is not None
    ):
        value = node.inputs[0]
    return value
