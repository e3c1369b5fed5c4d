"""Fused attention in standard operators, for OpenVINO, which reads no model-local functions.

Same values as the function's body. OpenVINO computes every tensor in the type that the graph gives it, so
that the gate is in float32 whatever the rest is in. See docs/decisions/0019.
"""

import math

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto

from exporters.editing import GraphEditor, attribute
from exporters.gate import gate_nodes
from exporters.nodes import attention_nodes
from exporters.sites import read_attention

# In half precision X is widened before it is pooled, in a pass of its own. From so many pixels for each
# input channel of X's convolution it is cheaper to pool what that reads, which has fewer channels.
_HOISTING_PAYS = 4


def spell_for_openvino(model: ModelProto) -> ModelProto:
    """A copy of `model` with every fused attention in operators that OpenVINO has: MVN, not functions."""
    copy = ModelProto()
    copy.CopyFrom(model)
    editor = GraphEditor(copy)
    tensors = {value.name: value.type.tensor_type for value in model.graph.value_info}
    for node in attention_nodes(copy):
        x = tensors[node.input[0]]
        _spell(editor, node, x.elem_type, math.prod(dim.dim_value for dim in x.shape.dim[2:]))
    editor.drop_unused()
    del copy.functions[:]
    return onnx.shape_inference.infer_shapes(copy, check_type=True, strict_mode=True)


def _spell(editor: GraphEditor, node: NodeProto, dtype: int, pixels: int) -> None:
    attention = read_attention(editor, node)
    layer, x, y = attention.layer, node.input[0], node.output[0]
    is_half = dtype != TensorProto.FLOAT
    z = _context(editor, layer, x, pixels) if is_half else _pooled(editor, x, f"{layer}.z")
    gate = gate_nodes(editor, attention, z, name=f"{layer}.gate", spelling="apart")
    scale = editor.reshaped(gate, [-1, attention.channels, 1, 1])
    if is_half:
        scale = editor.node("Cast", [scale], f"{layer}.scale", to=dtype)
    editor.node("Mul", [x, scale], y)
    editor.replace(node)


def _context(editor: GraphEditor, layer: str, x: str, pixels: int) -> str:
    """The mean of X in half precision, in float32: of its convolution's input where that is cheaper."""
    conv = editor.makers[x]
    if not _hoists(editor, conv, pixels):
        return _pooled(editor, editor.node("Cast", [x], f"{layer}.x32", to=TensorProto.FLOAT), f"{layer}.z")
    u, weight, bias = conv.input
    wide = editor.node("Cast", [u], f"{layer}.u32", to=TensorProto.FLOAT)
    kernel = editor.array(weight).astype(np.float32)
    kernel = kernel.reshape(len(kernel), -1)
    rows = editor.reshaped(_pooled(editor, wide, f"{layer}.u.z"), [-1, kernel.shape[1]])
    parameters = [
        editor.constant(f"{layer}.hoisted", kernel),
        editor.constant(f"{layer}.offset", editor.array(bias).astype(np.float32)),
    ]
    return editor.node("Gemm", [rows, *parameters], f"{layer}.z", transB=1)


def _hoists(editor: GraphEditor, conv: NodeProto, pixels: int) -> bool:
    """Whether X is a plain product of its convolution's input with constants, pixel by pixel."""
    if conv.op_type != "Conv" or len(conv.input) != 3 or not editor.constants.keys() >= {*conv.input[1:]}:
        return False
    _, inputs, *kernel = editor.constants[conv.input[1]].dims
    moves = [*attribute(conv, "strides", [1]), *(1 + pad for pad in attribute(conv, "pads", [0]))]
    is_product = {*kernel, *moves, attribute(conv, "group", 1)} == {1}
    return is_product and pixels >= _HOISTING_PAYS * inputs


def _pooled(editor: GraphEditor, tensor: str, output: str) -> str:
    return editor.node("GlobalAveragePool", [tensor], output)
