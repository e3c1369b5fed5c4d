"""Where in a candidate the context z is, and where the pre-sigmoid a: found by what they are worth."""

from dataclasses import dataclass
from typing import cast

import numpy as np
import onnx_ir as ir

from exporters.fusions.candidates import Candidate, check_shapes
from exporters.fusions.region import (
    Array,
    Declined,
    Part,
    cuts,
    nodes_between,
    op_types,
    sample_shape,
    sample_size,
)

_POOLS = ("ReduceMean", "GlobalAveragePool", "AveragePool", "ReduceSum")
_MAXIMA = ("ReduceMax", "GlobalMaxPool")
_TAKES_MAXIMUM = "its context takes a maximum over H and W, not the mean alone"
_LAYERS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
_NAMES = {"HardSigmoid": "a hard sigmoid", "Clip": "a clipped line, a hard sigmoid"}
_EXACT = 1e-9  # float64 against float64: anything further off is another function


@dataclass(frozen=True, kw_only=True)
class Site:
    """The mean z over the positions of X, the pre-sigmoid a, both (N, C), and the function between them."""

    candidate: Candidate
    context: ir.Value
    logit: ir.Value
    channels: int
    transform: Part


def locate(candidate: Candidate) -> Site | None:
    """The site; None for a product that no one would call attention.

    That is one that neither bounds its factor nor makes it of X's mean. Raises Declined for what
    looks like attention and is not the kind that has a node.
    """
    bounded = candidate.activation is not None
    try:
        check_shapes(candidate)
        context = _context(candidate)
    except Declined:
        if bounded:
            raise
        return None
    channels = cast("int", sample_size(context))
    logit = _logit(candidate, context, channels)
    transform = Part(context, logit)
    return Site(candidate=candidate, context=context, logit=logit, channels=channels, transform=transform)


def _context(candidate: Candidate) -> ir.Value:
    """The first value that holds one number a channel, proven to be X's mean over H and W."""
    x, nodes = candidate.x, _made_of_x(candidate)
    shape = cast("tuple[int, int, int]", sample_shape(x))
    if shape[1:] == (1, 1) and not any(node.op_type in _POOLS for node in nodes):
        raise Declined("it has no mean over H and W in it")
    values = [value for value in cuts(x, candidate.gate)[1:] if sample_size(value) == shape[0]]
    for value in values:
        _refuse_layers(x, value)
        if _equal(*_means(x, value, shape)):
            return value
    raise Declined(_no_context(x, values, nodes, shape))


def _made_of_x(candidate: Candidate) -> list[ir.Node]:
    try:
        return nodes_between(candidate.x, candidate.gate)
    except Declined as declined:
        raise Declined(f"its gate is not made of the tensor that it scales: {declined.reason}") from declined


def _refuse_layers(x: ir.Value, value: ir.Value) -> None:
    """No mean needs them, and running a network's takes long."""
    nodes = nodes_between(x, value)
    layers = [node for node in nodes if node.op_type in _LAYERS]
    if layers and any(node.op_type in _MAXIMA for node in nodes):
        raise Declined(_TAKES_MAXIMUM)
    if layers:
        raise Declined(
            f"its context is not the mean of the tensor that it scales ({op_types(layers)} in between)"
        )


def _means(
    x: ir.Value, value: ir.Value, shape: tuple[int, int, int], *, largest: bool = False
) -> tuple[Array, Array]:
    """`value` for random images, and their mean, or with `largest` their maximum, over H and W."""
    images = np.random.default_rng(0).normal(0.5, 1.0, (2, shape[0], shape[1] * shape[2]))
    return Part(x, value)(images.reshape(2, -1)), images.max(axis=2) if largest else images.mean(axis=2)


def _no_context(
    x: ir.Value, values: list[ir.Value], nodes: list[ir.Node], shape: tuple[int, int, int]
) -> str:
    if values and _equal(*_means(x, values[0], shape, largest=True)):
        return "its context is the maximum over H and W, not the mean"
    if any(node.op_type in _MAXIMA for node in nodes):
        return _TAKES_MAXIMUM
    return "its context is not the mean over H and W"


def _logit(candidate: Candidate, context: ir.Value, channels: int) -> ir.Value:
    """The last value from which the gate is the sigmoid, however that is spelled."""
    a = np.random.default_rng(1).permutation(np.linspace(-9.0, 9.0, 2 * channels)).reshape(2, channels)
    values = [v for v in cuts(context, candidate.gate) if sample_size(v) == channels]
    for value in reversed(values):
        rest = Part(value, candidate.gate)
        if any(node.op_type in _LAYERS for node in rest.nodes):
            break
        gate = rest(a)
        if _equal(gate, 1 / (1 + np.exp(-a))):
            return value
    raise Declined(_not_sigmoid(candidate))


def _not_sigmoid(candidate: Candidate) -> str:
    activation, last = candidate.activation, candidate.last
    if activation is None:
        return f"its gate is not a sigmoid (it ends in {last.op_type if last else 'nothing'})"
    if activation.op_type == "Sigmoid":
        return "its gate is more than a sigmoid: something follows it"
    return f"its gate is {_NAMES.get(activation.op_type, activation.op_type)}, not a sigmoid"


def _equal(found: Array, expected: Array) -> bool:
    return found.shape == expected.shape and bool(np.allclose(found, expected, rtol=_EXACT, atol=_EXACT))
