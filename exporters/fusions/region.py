"""Pieces of a graph: what lies between two values, and what it computes, in float64."""

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from exporters.fusions.onnx_file import first_line

Array = NDArray[np.float64]

_DOUBLE = ir.DataType.DOUBLE
_NARROW = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
MAX_NODES = 200  # an attention has some twenty; more is a network


class Declined(Exception):  # noqa: N818 - not an error: why a candidate stays as it is
    """Raised where a candidate turns out not to be what is looked for; becomes a Miss."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def nodes_between(start: ir.Value, end: ir.Value) -> list[ir.Node]:
    """The nodes that compute `end` from `start` and constants, in the graph's order.

    Raises Declined where `end` depends on anything else, or not on `start`.
    """
    found: set[ir.Node] = set()
    pending, reached = [end], False
    while pending:
        value = pending.pop()
        node = value.producer()
        if value is start:
            reached = True
        elif node is None:
            if value.const_value is None:
                raise Declined(f"it depends on {value.name} as well")
        elif node not in found:
            found.add(node)
            pending += [x for x in node.inputs if x is not None]
    if not reached:
        raise Declined(f"it does not depend on {start.name}")
    return _that_depend_on(start, found)


def _that_depend_on(start: ir.Value, nodes: set[ir.Node]) -> list[ir.Node]:
    """In the graph's order; those that only make constants, maybe for others too, are left out."""
    graph = next((node.graph for node in nodes), None)
    depending, result = {start}, list[ir.Node]()
    for node in graph or ():
        if node in nodes and any(value in depending for value in node.inputs):
            result.append(node)
            depending.update(node.outputs)
    return result


def cuts(start: ir.Value, end: ir.Value) -> list[ir.Value]:
    """The values that everything from `start` to `end` flows through, both included, in order."""
    nodes = nodes_between(start, end)
    last_use = {value: i for i, node in enumerate(nodes) for value in node.inputs if value is not None}
    result, busy_until = [start], last_use.get(start, -1)
    for i, node in enumerate(nodes):
        if busy_until <= i and len(node.outputs) == 1:
            result.append(node.outputs[0])
        busy_until = max([busy_until, *(last_use.get(value, -1) for value in node.outputs)])
    return result


def sample_shape(value: ir.Value) -> tuple[int, ...] | None:
    """The dimensions after the batch's, or None where they are not known."""
    dims = list(value.shape)[1:] if value.shape is not None and len(value.shape) else [None]
    return (
        tuple(dim for dim in dims if isinstance(dim, int)) if all(isinstance(d, int) for d in dims) else None
    )


def sample_size(value: ir.Value) -> int | None:
    """Numbers that a value holds for each image."""
    shape = sample_shape(value)
    return None if shape is None else int(np.prod(shape, dtype=np.int64))


class Part:
    """The function from `start` to `end`, (B, numbers of start) → (B, numbers of end), in float64.

    With `double` False it computes in the graph's own types. Raises Declined where it cannot be cut
    out or holds operators that ONNX's own reference lacks.
    """

    def __init__(self, start: ir.Value, end: ir.Value, *, double: bool = True) -> None:
        self.nodes = nodes_between(start, end)
        shape = sample_shape(start)
        if shape is None:
            raise Declined(f"the shape of {start.name} is not known")
        if len(self.nodes) > MAX_NODES:
            raise Declined(f"{len(self.nodes)} operators stand between it and the gate")
        self.start, self.end = start, end
        self._shape = (-1, *shape)
        self._dtype = np.float64 if double else np.float32
        self._evaluator = None if start is end else _evaluator(start, end, double=double)

    def __call__(self, x: Array) -> Array:
        if self._evaluator is None:
            return x
        try:
            # Overflow and 0/0 are answers too: they fail the comparison that follows.
            with np.errstate(all="ignore"):
                (y,) = self._evaluator.run(None, {"start": x.astype(self._dtype).reshape(self._shape)})
        except Exception as error:  # whatever a foreign graph makes numpy raise
            raise Declined(f"it cannot be evaluated: {first_line(error)}") from error
        return np.asarray(y, dtype=np.float64).reshape(len(x), -1)


def _evaluator(start: ir.Value, end: ir.Value, *, double: bool) -> ReferenceEvaluator:
    if start.graph is None:
        raise Declined(f"{start.name} is in no graph")
    try:
        graph = ir.convenience.extract(start.graph, [start], [end])
        if double:
            _widen(graph)
        _free_types(graph)
        return ReferenceEvaluator(ir.to_proto(ir.Model(graph, ir_version=10)))
    except Exception as error:  # an operator without reference, or a graph that cannot be cut
        raise Declined(f"it cannot be evaluated: {first_line(error)}") from error


def _widen(graph: ir.Graph) -> None:
    """Float64 throughout, in place: constants, casts and the input's type."""
    for value in graph.initializers.values():
        if value.const_value is not None:
            value.const_value = _wide(value.const_value)
            value.dtype = value.const_value.dtype
    for node in graph:
        _widen_attributes(node)
    graph.inputs[0].type = ir.TensorType(_DOUBLE)


def _free_types(graph: ir.Graph) -> None:
    """Drop what was inferred for another type and batch."""
    for node in graph:
        for value in node.outputs:
            value.shape, value.type = None, None
    graph.inputs[0].name, graph.inputs[0].shape = "start", None


def _widen_attributes(node: ir.Node) -> None:
    for attribute in list(node.attributes.values()):
        if attribute.type == ir.AttributeType.TENSOR:
            node.attributes.add(ir.AttrTensor(attribute.name, _wide(attribute.as_tensor())))
    if node.op_type == "Cast" and node.attributes["to"].as_int() in _NARROW:
        node.attributes.add(ir.AttrInt64("to", _DOUBLE))
    if node.op_type == "GroupNormalization":  # LayerNormalization's reference computes in its input's type
        node.attributes.add(ir.AttrInt64("stash_type", _DOUBLE))


def _wide(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().astype(np.float64)) if tensor.dtype in _NARROW else tensor


def op_types(nodes: Iterable[ir.Node]) -> str:
    """`Conv, Relu`: for messages."""
    return ", ".join(dict.fromkeys(node.op_type for node in nodes))
