"""Fused attention spelled out in standard operators, for TensorRT.

Same values as the function's body, in the form that TensorRT makes the fewest kernels of.
"""

import onnx
from onnx import ModelProto, NodeProto, TensorProto, TypeProto

from exporters.editing import GraphEditor, attribute
from exporters.gate import gate_nodes
from exporters.nodes import attention_nodes
from exporters.sites import read_attention


def spell_out(model: ModelProto) -> ModelProto:
    """A copy of `model` with every fused attention in the operators that suit TensorRT.

    A block is two kernels then: a pooling, and all else with the addition and the ReLU. The pooling is an
    AveragePool over the whole image: that fixes the resolution, and spares TensorRT a transpose of the
    tensor in each block. See docs/decisions/0010.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    editor = GraphEditor(copy)
    tensors = {value.name: value.type.tensor_type for value in model.graph.value_info}
    fused = attention_nodes(copy)
    for node in fused:
        x = tensors[node.input[0]]
        _spell(editor, node, x.elem_type, _size(x))
    if not fused:
        _spell_last_mean(editor, tensors)
    editor.drop_unused()
    del copy.functions[:]
    return onnx.shape_inference.infer_shapes(copy, check_type=True, strict_mode=True)


def _size(tensor: TypeProto.Tensor) -> tuple[int, int]:
    """Height and width."""
    height, width = (dim.dim_value for dim in tensor.shape.dim[2:])
    return height, width


def _spell(editor: GraphEditor, node: NodeProto, dtype: int, size: tuple[int, int]) -> None:
    """In half precision X is widened once, for the scale too: the convolution then writes it in float32."""
    attention = read_attention(editor, node)
    layer, x, y = attention.layer, node.input[0], node.output[0]
    is_half = dtype != TensorProto.FLOAT
    wide = editor.node("Cast", [x], f"{layer}.x32", to=TensorProto.FLOAT) if is_half else x
    z = editor.node("AveragePool", [wide], f"{layer}.z", kernel_shape=list(size))
    gate = gate_nodes(editor, attention, z, name=f"{layer}.gate", spelling="nested")
    scale = editor.reshaped(gate, [-1, attention.channels, 1, 1])
    scaled = editor.node("Mul", [wide, scale], f"{layer}.y32" if is_half else y)
    if is_half:
        editor.node("Cast", [scaled], y, to=dtype)
    editor.replace(node)


def _spell_last_mean(editor: GraphEditor, tensors: dict[str, TypeProto.Tensor]) -> None:
    """The mean before the classifier as AveragePool, where TensorRT would transpose the tensor for it.

    It does after a convolution in float32; a mean after an attention, a cast or a dequantisation is in
    one kernel with them.
    """
    for node in list(editor.model.graph.node):
        reader = editor.only_reader(node.output[0])
        if node.op_type == "ReduceMean" and reader is not None and reader.op_type == "Gemm":
            x = tensors[node.input[0]]
            if editor.makers[node.input[0]].op_type == "Relu" and not attribute(node, "keepdims", 1):
                z = editor.node("AveragePool", [node.input[0]], f"{node.output[0]}.z", kernel_shape=_size(x))
                editor.node("Flatten", [z], node.output[0])
                editor.replace(node)
