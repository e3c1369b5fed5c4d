"""Where attention stands in a portable graph: conv → attention → Add → Relu, and its parameters."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from exporters.editing import GraphEditor, attribute
from exporters.functions import LINEAR_CONTEXT_TRANSFORM, SQUEEZE_EXCITATION
from exporters.nodes import attention_nodes, node_module
from lct_deploy.errors import ExportError

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Attention:
    """What a fused attention node computes: its operator and parameters, all float32.

    `groups` and `epsilon` are those of the normalisation, None for an attention without.
    `parameters` are w, b of LCT or w1, b1, w2, b2 of SE and SE+, shaped as in PyTorch.
    """

    layer: str
    op: str
    groups: int | None
    epsilon: float
    parameters: tuple[Floats, ...]

    @property
    def is_lct(self) -> bool:
        return self.op == LINEAR_CONTEXT_TRANSFORM

    @property
    def channels(self) -> int:
        return len(self.parameters[-1])


@dataclass(frozen=True, kw_only=True)
class Site:
    """A residual block's tail: `x` (conv's output) → attention → `y` → Add with `identity` → Relu → `out`.

    `size` is X's height and width. In a quantised graph the values are dequantised ones, and `scale`
    is the name of X's scale.
    """

    attention: Attention
    x: str
    y: str
    identity: str
    out: str
    size: tuple[int, int]
    scale: str | None = None


def read_attention(editor: GraphEditor, node: NodeProto) -> Attention:
    """The attention that a fused node of domain `lct` stands for."""
    grouped = node.op_type != SQUEEZE_EXCITATION
    return Attention(
        layer=node_module(node),
        op=node.op_type,
        groups=attribute(node, "groups") if grouped else None,
        epsilon=attribute(node, "epsilon", 0.0),
        parameters=tuple(editor.array(name).astype(np.float32) for name in node.input[1:]),
    )


def find_sites(model: ModelProto) -> list[Site]:
    """Every attention of `model` with the residual tail around it, in graph order.

    Raises ExportError for an attention that does not stand in such a tail.
    """
    editor = GraphEditor(model)
    sizes = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim[2:])
        for value in model.graph.value_info
    }
    return [_site(editor, node, sizes[node.input[0]]) for node in attention_nodes(model)]


def without_attention(model: ModelProto, sites: list[Site]) -> ModelProto:
    """The plain twin: the same network, each attention left out."""
    plain = ModelProto()
    plain.CopyFrom(model)
    editor = GraphEditor(plain)
    for site in sites:
        # X first: onnxruntime fuses the convolution before an addition's first operand into it.
        (add,) = editor.readers[site.y]
        add.input[:] = [site.x, site.identity]
    editor.drop_unused()
    del plain.functions[:]
    return plain


def _site(editor: GraphEditor, node: NodeProto, size: tuple[int, ...]) -> Site:
    layer = node_module(node)
    x = node.input[0]
    if editor.only_reader(x) is not node:
        raise ExportError(f"{layer}: its input is read elsewhere too, the tail cannot be fused")
    y = _after_rounding(editor, node.output[0])
    add = _next(editor, y, "Add", layer)
    relu = _next(editor, add.output[0], "Relu", layer)
    identity = next(name for name in add.input if name != y)
    height, width = size
    dequantize = editor.makers[x]
    return Site(
        attention=read_attention(editor, node),
        x=x,
        y=y,
        identity=identity,
        out=relu.output[0],
        size=(height, width),
        scale=dequantize.input[1] if dequantize.op_type == "DequantizeLinear" else None,
    )


def _after_rounding(editor: GraphEditor, value: str) -> str:
    """`value`, or what its QuantizeLinear and DequantizeLinear make of it."""
    quantize = editor.only_reader(value)
    if quantize is None or quantize.op_type != "QuantizeLinear":
        return value
    dequantize = editor.only_reader(quantize.output[0])
    return value if dequantize is None else dequantize.output[0]


def _next(editor: GraphEditor, value: str, op: str, layer: str) -> NodeProto:
    node: Any = editor.only_reader(value)
    if node is None or node.op_type != op:
        found = "several nodes" if node is None else f"a {node.op_type}"
        raise ExportError(f"{layer}: expected one {op} after the attention, found {found}")
    return node
