"""int8 on this host: the fourth channel of the image, which onnxruntime appends slowly.

The stem reads an image with a channel of 255 behind its three (exporters/quantization/stem.py). A Concat
along the last dimension copies three bytes, then one, for each pixel. A 1x1 convolution of eight pixels at a
time, with weights of 0 and 1 and a bias of 255, writes the same bytes in less than half of the time.
"""

import numpy as np
from onnx import ModelProto, NodeProto

from exporters.editing import GraphEditor, attribute

_PIXELS = 8  # in a row, that are the channels of one


def append_by_product(model: ModelProto) -> None:
    """Rewrite the Concat in place; a graph without, or whose rows are no whole groups, stays as it is."""
    editor = GraphEditor(model)
    concat = next((node for node in model.graph.node if _appends(editor, node)), None)
    if concat is None:
        return
    batch, height, width, _ = editor.constants[concat.input[1]].dims
    if width % _PIXELS:
        return
    weights = np.kron(np.eye(_PIXELS, dtype=np.int8), np.eye(4, 3, dtype=np.int8))[..., None, None]
    name = concat.output[0]
    one, zero = (
        editor.constant(f"{name}.{key}", value)
        for key, value in (("one", np.array(1, np.float32)), ("zero", np.array(0, np.uint8)))
    )
    parameters = [
        editor.constant(f"{name}.weights", weights),
        one,
        editor.constant(f"{name}.weights_zero", np.array(0, np.int8)),
        one,
        zero,
        editor.constant(f"{name}.bias", np.tile(np.array([0, 0, 0, 255], np.int32), _PIXELS)),
    ]
    grouped = editor.reshaped(concat.input[0], [batch, height, width // _PIXELS, 3 * _PIXELS])
    product = editor.node(
        "QLinearConv",
        [grouped, one, zero, *parameters],
        f"{name}.groups",
        domain="com.microsoft",
        channels_last=1,
        kernel_shape=[1, 1],
    )
    shape = editor.constant(f"{name}.shape", np.array([batch, height, width, 4]))
    editor.node("Reshape", [product, shape], name)
    editor.replace(concat)
    editor.drop_unused()


def _appends(editor: GraphEditor, node: NodeProto) -> bool:
    """Whether it is the Concat of three channels and one that is 255 everywhere."""
    if node.op_type != "Concat" or attribute(node, "axis") != 3 or len(node.input) != 2:
        return False
    image, last = node.input
    return (
        image == editor.model.graph.input[0].name
        and last in editor.constants
        and list(editor.constants[last].dims)[-1:] == [1]
        and bool((editor.array(last) == 255).all())
    )
