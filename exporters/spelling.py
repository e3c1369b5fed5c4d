"""Fused attention spelled out in standard operators, for TensorRT.

Same values as the function's body, fewer nodes: one pooling, one LayerNormalization, one Sigmoid.
"""

import onnx
from onnx import ModelProto, NodeProto, TensorProto

from exporters.editing import GraphEditor
from exporters.gate import gate_nodes
from exporters.nodes import attention_nodes
from exporters.sites import read_attention


def spell_out(model: ModelProto) -> ModelProto:
    """A copy of `model` with every fused attention in the operators that suit TensorRT.

    The pooling is an AveragePool over the whole image: that fixes the resolution, and spares TensorRT
    a transpose of the tensor in each block; see docs/decisions/0007.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    editor = GraphEditor(copy)
    tensors = {value.name: value.type.tensor_type for value in model.graph.value_info}
    for node in attention_nodes(copy):
        x = tensors[node.input[0]]
        height, width = (dim.dim_value for dim in x.shape.dim[2:])
        _spell(editor, node, x.elem_type, (height, width))
    editor.drop_unused()
    del copy.functions[:]
    return onnx.shape_inference.infer_shapes(copy, check_type=True, strict_mode=True)


def _spell(editor: GraphEditor, node: NodeProto, dtype: int, size: tuple[int, int]) -> None:
    attention = read_attention(editor, node)
    layer, x = attention.layer, node.input[0]
    wide = x if dtype == TensorProto.FLOAT else editor.node("Cast", [x], f"{layer}.x32", to=TensorProto.FLOAT)
    z = editor.node("AveragePool", [wide], f"{layer}.z", kernel_shape=list(size))
    gate = gate_nodes(editor, attention, z, name=f"{layer}.gate")
    scale = editor.reshaped(gate, [-1, attention.channels, 1, 1])
    if dtype != TensorProto.FLOAT:
        scale = editor.node("Cast", [scale], f"{layer}.scale", to=dtype)
    editor.node("Mul", [x, scale], node.output[0])
    editor.replace(node)
