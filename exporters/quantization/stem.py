"""What stands between the image and the first convolution, as each runtime wants it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, numpy_helper

from exporters.functions import standard_opset
from exporters.quantization.placement import stem_input
from exporters.quantization.rewrite import copied, initializers, node_like, rewritten

_SHAPE_HAS_END = 15  # the first opset
_NORMALIZATION = ["Transpose", "Cast", "Div", "Sub", "Div"]


def fold_normalization(model: ModelProto) -> ModelProto:
    """The same function of the image in exact arithmetic, with no float image in memory.

        (p / 255 - mean) / std · W  =  p / 255 · (W / std)  +  1 · Σ -mean / std · W

    The second term is no bias: a convolution pads with zeros *after* normalisation, so the term is
    missing where the kernel overlaps the border. It is a fourth channel of the image, 255 in every
    pixel, that padding sets to zero like the other three. A graph that begins otherwise stays as it is, and
    so does one of an opset in which Shape has no `end`.
    """
    chain = _normalization(model.graph)
    if chain is None or standard_opset(model) < _SHAPE_HAS_END:
        return model
    values = initializers(model)
    conv = copied(model.graph.node[len(chain)])
    weight = f"{conv.input[1]}_folded"
    constants: dict[str, NDArray[Any]] = {
        weight: _folded(values[conv.input[1]], *(values[node.input[1]] for node in chain[3:])),
        "image_scale": (1 / values[chain[2].input[1]]).astype(np.float32),
        "image_zero_point": np.array(0, np.uint8),
        "image_one_channel": np.array([1]),
    }
    conv.input[0], conv.input[1] = "image_dequantized", weight
    nodes = [*_read_bytes(chain), conv, *model.graph.node[len(chain) + 1 :]]
    return rewritten(model, nodes, constants, precision="fp32")


def cast_first(model: ModelProto) -> ModelProto:
    """The same graph with the image cast to float before it is transposed: TensorRT moves no uint8."""
    chain = _normalization(model.graph)
    if chain is None:
        return model
    transpose, cast = map(copied, chain[:2])
    cast.input[0], transpose.output[0] = transpose.input[0], cast.output[0]
    cast.output[0] = transpose.input[0] = "image_float"
    return rewritten(model, [cast, transpose, *model.graph.node[2:]], {}, precision="fp32")


def _folded(weight: NDArray[Any], mean: NDArray[Any], std: NDArray[Any]) -> NDArray[np.float32]:
    """Weights (out, 4, k, k) for ones of (out, 3, k, k); mean and std are (1, 3, 1, 1)."""
    scaled = weight.astype(np.float64) / std
    inside = -(scaled * mean).sum(axis=1, keepdims=True)
    return np.concatenate([scaled, inside], axis=1).astype(np.float32)


def _read_bytes(chain: list[NodeProto]) -> list[NodeProto]:
    """Image → a fourth channel → (N, 4, H, W) → p / 255.

    A Pad with 255 would say the same, and took onnxruntime 0.5 ms for an image of 224 pixels; of a fixed
    batch all but the last Concat is a constant.
    """
    transpose, cast = copied(chain[0]), chain[1]
    transpose.input[0], transpose.output[0] = "image_four_channels", "image_quantized"
    scale = ["image_quantized", "image_scale", "image_zero_point"]
    full = numpy_helper.from_array(np.array([255], np.uint8))
    return [
        node_like(transpose, "Shape", ["image"], "image_pixels", start=0, end=3),
        node_like(
            transpose,
            "Concat",
            ["image_pixels", "image_one_channel"],
            "image_inside_shape",
            suffix="Concat_shape",
            axis=0,
        ),
        node_like(transpose, "ConstantOfShape", ["image_inside_shape"], "image_inside", value=full),
        node_like(transpose, "Concat", ["image", "image_inside"], "image_four_channels", axis=3),
        transpose,
        node_like(cast, "DequantizeLinear", scale, "image_dequantized"),
    ]


def _normalization(graph: GraphProto) -> list[NodeProto] | None:
    """The nodes before the first convolution, where they are those of our exports."""
    first = next(index for index, node in enumerate(graph.node) if node.op_type == "Conv")
    chain = list(graph.node[:first])
    known = [node.op_type for node in chain] == _NORMALIZATION
    return chain if known and chain[-1].output[0] == stem_input(graph) else None
