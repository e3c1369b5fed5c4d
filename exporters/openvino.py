"""Fused attention in standard operators, for OpenVINO, which reads no model-local functions.

Same values as the function's body. OpenVINO computes every tensor in the type that the graph gives it, so
that the gate is in float32 whatever the rest is in. See docs/decisions/0019.
"""

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, TypeProto

from exporters.editing import GraphEditor, attribute
from exporters.gate import gate_nodes
from exporters.nodes import attention_nodes
from exporters.quantization.head import mean_axes
from exporters.sites import read_attention

# In half precision X is widened before it is pooled, in a pass of its own. From so many pixels for each
# input channel of X's convolution it is cheaper to pool what that reads, which has fewer channels.
_HOISTING_PAYS = 4
# That pass adds up to so many bands of rows, so that it writes the fewer, and the fewer are pooled.
_BANDS = 7
_HALF = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
_TO_PLANES = [0, 3, 1, 2]  # (N, H, W, C) to (N, C, H, W)


def spell_for_openvino(model: ModelProto) -> ModelProto:
    """A copy of `model` with every fused attention in operators that OpenVINO has: MVN, not functions."""
    copy = ModelProto()
    copy.CopyFrom(model)
    editor = GraphEditor(copy)
    tensors = {value.name: value.type.tensor_type for value in model.graph.value_info}
    _transpose_last(editor)
    for node in attention_nodes(copy):
        _spell(editor, node, tensors[node.input[0]])
    for node in list(copy.graph.node):
        if node.op_type == "ReduceMean" and sorted(mean_axes(copy, node)) == [2, 3]:
            _add_bands(editor, node, tensors)
    editor.drop_unused()
    del copy.functions[:]
    return onnx.shape_inference.infer_shapes(copy, check_type=True, strict_mode=True)


def _transpose_last(editor: GraphEditor) -> None:
    """Normalise the image as it lies, channels last: OpenVINO's convolution reads it so, and nothing moves.

    Transposed first, as PyTorch has it, the image would be moved there and back.
    """
    transpose = next((node for node in editor.model.graph.node if node.op_type == "Transpose"), None)
    if transpose is None or attribute(transpose, "perm") != _TO_PLANES:
        return
    value, chain = transpose.output[0], list[NodeProto]()
    while (node := editor.only_reader(value)) is not None and _is_normalization(editor, node, value):
        chain.append(node)
        value = node.output[0]
    if not chain:
        return
    as_it_lies = transpose.input[0]
    for node in chain:
        others = [_channels_last(editor, name) for name in node.input[1:]]
        attributes = {a.name: attribute(node, a.name) for a in node.attribute}
        as_it_lies = editor.node(node.op_type, [as_it_lies, *others], f"{node.output[0]}.image", **attributes)
    editor.node("Transpose", [as_it_lies], value, perm=_TO_PLANES)
    editor.replace(chain[-1])


def _is_normalization(editor: GraphEditor, node: NodeProto, value: str) -> bool:
    """Whether it computes with one constant for each channel of `value`, or one for all."""
    return (
        node.op_type in {"Cast", "Div", "Sub"}
        and node.input[0] == value
        and all(
            name in editor.constants and len(editor.constants[name].dims) in {0, 4} for name in node.input[1:]
        )
    )


def _channels_last(editor: GraphEditor, constant: str) -> str:
    """A constant of shape (1, C, 1, 1) as one of (1, 1, 1, C)."""
    values, name = editor.array(constant), f"{constant}.channels_last"
    if values.ndim == 0:
        return constant
    # A mean that equals the deviation may be one constant with it.
    return name if name in editor.constants else editor.constant(name, values.transpose(0, 2, 3, 1))


def _spell(editor: GraphEditor, node: NodeProto, tensor: TypeProto.Tensor) -> None:
    attention = read_attention(editor, node)
    layer, x, y = attention.layer, node.input[0], node.output[0]
    is_half = tensor.elem_type != TensorProto.FLOAT
    z = _context(editor, layer, x, tensor) if is_half else _pooled(editor, x, f"{layer}.z")
    gate = gate_nodes(editor, attention, z, name=f"{layer}.gate", spelling="apart")
    scale = editor.reshaped(gate, [-1, attention.channels, 1, 1])
    if is_half:
        scale = editor.node("Cast", [scale], f"{layer}.scale", to=tensor.elem_type)
    editor.node("Mul", [x, scale], y)
    editor.replace(node)


def _context(editor: GraphEditor, layer: str, x: str, tensor: TypeProto.Tensor) -> str:
    """The mean of X in half precision, in float32: of its convolution's input where that is cheaper."""
    conv = editor.makers[x]
    height, width = (dim.dim_value for dim in tensor.shape.dim[2:])
    if not _hoists(editor, conv, height * width):
        return _pooled(editor, _widened(editor, x, height, f"{layer}.x32"), f"{layer}.z")
    u, weight, bias = conv.input
    wide = _widened(editor, u, height, f"{layer}.u32")
    kernel = editor.array(weight).astype(np.float32)
    kernel = kernel.reshape(len(kernel), -1)
    rows = editor.reshaped(_pooled(editor, wide, f"{layer}.u.z"), [-1, kernel.shape[1]])
    parameters = [
        editor.constant(f"{layer}.hoisted", kernel),
        editor.constant(f"{layer}.offset", editor.array(bias).astype(np.float32)),
    ]
    return editor.node("Gemm", [rows, *parameters], f"{layer}.z", transB=1)


def _add_bands(editor: GraphEditor, mean: NodeProto, tensors: dict[str, TypeProto.Tensor]) -> None:
    """The mean of an image in half precision, before the classifier, from its bands as in an attention."""
    cast = editor.makers.get(mean.input[0])
    if cast is None or cast.op_type != "Cast" or editor.only_reader(cast.output[0]) is not mean:
        return
    x = tensors.get(cast.input[0])
    if x is not None and x.elem_type in _HALF:
        mean.input[0] = _widened(editor, cast.input[0], x.shape.dim[2].dim_value, f"{mean.name}/x32")
        editor.replace(cast)


def _widened(editor: GraphEditor, x: str, height: int, output: str) -> str:
    """The mean in float32 of equal bands of the rows of X, which has the mean of X."""
    count = max(count for count in range(1, _BANDS + 1) if height % count == 0)
    if count == 1:
        return editor.node("Cast", [x], output, to=TensorProto.FLOAT)
    rows = editor.constant(f"{output}.rows", np.full(count, height // count))
    first, *others = (f"{output}.band{index}" for index in range(count))
    editor.node("Split", [x, rows], first, others=tuple(others), axis=2)
    total, *wide = (
        editor.node("Cast", [band], f"{band}.x32", to=TensorProto.FLOAT) for band in (first, *others)
    )
    for index, band in enumerate(wide):
        total = editor.node("Add", [total, band], f"{output}.sum{index}")
    share = editor.constant(f"{output}.share", np.array(1 / count, np.float32))
    return editor.node("Mul", [total, share], output)


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
