"""fp32 on this host: attention inside onnxruntime's blocked NCHWc layout.

onnxruntime leaves NCHWc for any broadcast Mul, at the price of a reorder before and after it. So
the *plain* network is optimised, whose every tail is one Conv with the identity as its Sum input
and ReLU as its activation, and each tail then gets its attention in a form that stays in the layout:

- `op`: Conv, then `lct::Attn` (LCT) or `lct::GateAdd` (SE, its gate in standard operators) of our
  op library, which pools, scales, adds and rectifies while a slab of channels is in cache;
- `depthwise`: Conv, then one depthwise 1x1 Conv whose filter is the gate, with Sum and ReLU;
- `weights`: the gate is hoisted before the 1x1 Conv (mean(X) = W·mean(U) + b) and multiplied into
  its weights, so that X is never scaled at all; `op weights`: by `lct::GateWeights` of our library.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from onnx import ModelProto, NodeProto, helper

from exporters.editing import GraphEditor, attribute
from exporters.functions import DOMAIN, DOMAIN_VERSION
from exporters.gate import gate_nodes
from exporters.nodes import GATE_KEY
from exporters.sites import Attention, Site
from lct_deploy.errors import ExportError

NCHWC = "com.microsoft.nchwc"

# Pixels of X for each input channel of its convolution from which hoisting the gate pays: the weights
# are rewritten for every image, X otherwise read once more. See docs/decisions/0006.
HOISTING_PAYS = 4

Form = Literal["op", "op weights", "depthwise", "weights"]


@dataclass(frozen=True, kw_only=True)
class _Tail:
    """What the forms need to know of a tail: its values, image size (H, W), batch, and block of NCHWc."""

    identity: str
    out: str
    size: tuple[int, int]
    batch: int
    block: int


def insert_attention(
    plain: ModelProto, sites: list[Site], *, batch: int, block: int, library: bool
) -> dict[str, Form]:
    """Give each tail of the optimised plain network its attention, in place; returns the forms by layer.

    Raises ExportError where a tail is not the one fused convolution that it should be, or where
    its form does not fit it.
    """
    editor = GraphEditor(plain)
    forms: dict[str, Form] = {}
    for site in sites:
        conv = _tail_conv(editor, site, block)
        tail = _Tail(identity=conv.input[3], out=conv.output[0], size=site.size, batch=batch, block=block)
        form = _choose(editor, conv, site, tail, library=library)
        _FORMS[form](editor, conv, site, tail)
        forms[site.attention.layer] = form
    if library:
        editor.use_domain(DOMAIN, DOMAIN_VERSION)
    editor.drop_unused()
    return forms


def _choose(editor: GraphEditor, conv: NodeProto, site: Site, tail: _Tail, *, library: bool) -> Form:
    """Weights where they are much smaller than X, which is what the other forms read again."""
    _, inputs, *kernel = editor.constants[conv.input[1]].dims
    height, width = tail.size
    if kernel == [1, 1] and height * width >= HOISTING_PAYS * inputs:
        return "op weights" if library and site.attention.is_lct else "weights"
    return "op" if library else "depthwise"


def _tail_conv(editor: GraphEditor, site: Site, block: int) -> NodeProto:
    """The convolution with Sum and ReLU that onnxruntime made of conv → Add → Relu."""
    layer, channels = site.attention.layer, site.attention.channels
    if block == 1:
        raise ExportError("onnxruntime has no blocked layout on this machine: its graph serves as it is")
    if channels % block:
        raise ExportError(f"{layer}: {channels} channels are no multiple of the layout's block, {block}")
    found = [n for n in editor.model.graph.node if n.domain == NCHWC and n.name == f"{site.x}_nchwc"]
    if len(found) != 1 or len(found[0].input) != 4 or attribute(found[0], "activation") != b"Relu":
        raise ExportError(
            f"{layer}: onnxruntime did not fuse its convolution, addition and ReLU into one node"
        )
    return found[0]


def _op(editor: GraphEditor, conv: NodeProto, site: Site, tail: _Tail) -> None:
    """X = Conv(U), then one pass of our op library: pool, gate, scale, add, rectify."""
    attention, x = site.attention, _bare_conv(editor, conv, site)
    if attention.is_lct:
        editor.node(
            "Attn",
            [x, tail.identity, *_affine(editor, attention)],
            tail.out,
            domain=DOMAIN,
            metadata={GATE_KEY: attention.layer},
            groups=attention.groups,
            epsilon=attention.epsilon,
            block=tail.block,
        )
    else:
        gate = gate_nodes(editor, attention, _pooled(editor, x, attention.layer), name=_gate(site))
        editor.node("GateAdd", [x, tail.identity, gate], tail.out, domain=DOMAIN, block=tail.block)
    editor.replace(conv)


def _depthwise(editor: GraphEditor, conv: NodeProto, site: Site, tail: _Tail) -> None:
    """X = Conv(U), then a depthwise 1x1 Conv with the gate for its filter."""
    attention, x = site.attention, _bare_conv(editor, conv, site)
    gate = gate_nodes(editor, attention, _pooled(editor, x, attention.layer), name=_gate(site))
    channels = tail.batch * attention.channels
    weights = editor.reshaped(gate, [channels, 1, 1, 1])
    _row_conv(editor, tail, [x, weights, ""], group=channels)
    editor.replace(conv)


def _op_weights(editor: GraphEditor, conv: NodeProto, site: Site, tail: _Tail) -> None:
    """One operator of our library from U, the weights and the bias to those of each image."""
    attention, layer = site.attention, site.attention.layer
    biases = f"{layer}.biases"
    weights = editor.node(
        "GateWeights",
        [*conv.input[:3], *_affine(editor, attention)],
        f"{layer}.weights",
        others=(biases,),
        domain=DOMAIN,
        metadata={GATE_KEY: layer},
        groups=attention.groups,
        epsilon=attention.epsilon,
        block=tail.block,
    )
    outputs, inputs = editor.constants[conv.input[1]].dims[:2]
    editor.declare(weights, [tail.batch * outputs, inputs, 1, 1])
    editor.declare(biases, [tail.batch * outputs])
    _row_conv(editor, tail, [conv.input[0], weights, biases], group=tail.batch)
    editor.replace(conv)


def _affine(editor: GraphEditor, attention: Attention) -> list[str]:
    """LCT's w and b."""
    return [
        editor.constant(f"{attention.layer}.{key}", values)
        for key, values in zip("wb", attention.parameters, strict=True)
    ]


def _weights(editor: GraphEditor, conv: NodeProto, site: Site, tail: _Tail) -> None:
    """The gate from U's mean, multiplied into the weights and the bias, by onnxruntime's own kernels.

    The convolution of the mean is the mean of the convolution. And its blocked weights lie in memory as an
    image does, (O / block, I, block): O channels of I pixels, that a depthwise 1x1 Conv scales.
    """
    attention, layer = site.attention, site.attention.layer
    outputs, inputs = editor.constants[conv.input[1]].dims[:2]
    pooled = _pooled(editor, conv.input[0], layer)
    z = editor.node("Conv", [pooled, *conv.input[1:3]], f"{layer}.z", domain=NCHWC, kernel_shape=[1, 1])
    gate = gate_nodes(editor, attention, z, name=_gate(site))
    image = editor.constant(f"{layer}.image", editor.array(conv.input[1]).reshape(1, outputs, 1, inputs))
    if tail.batch > 1:  # onnxruntime does this once, when it loads the graph
        image = editor.node("Concat", [image] * tail.batch, f"{layer}.images", axis=1)
    rows = tail.batch * outputs
    filters = editor.reshaped(gate, [rows, 1, 1, 1])
    scaled = editor.node(
        "Conv", [image, filters], f"{layer}.scaled", domain=NCHWC, kernel_shape=[1, 1], group=rows
    )
    weights = editor.reshaped(scaled, [rows, inputs, 1, 1])
    bias = editor.constant(f"{layer}.bias", np.tile(editor.array(conv.input[2]), tail.batch))
    biases = editor.node("Mul", [bias, editor.reshaped(gate, [rows])], f"{layer}.biases")
    _row_conv(editor, tail, [conv.input[0], weights, biases], group=tail.batch)
    editor.replace(conv)


def _row_conv(editor: GraphEditor, tail: _Tail, inputs: list[str], *, group: int) -> None:
    """Collect the tail's 1x1 convolution with weights of each image's own.

    The images stand in a row, as the channels of a single one: in NCHWc that is the same memory, and
    `group` keeps them apart.
    """
    values, weights, bias = inputs
    height, width = tail.size
    if tail.batch > 1:
        values, identity = (
            editor.reshaped(value, [1, -1, height, width]) for value in (values, tail.identity)
        )
        out = f"{tail.out}.row"
    else:
        identity, out = tail.identity, tail.out
    editor.node(
        "Conv",
        [values, weights, bias, identity],
        out,
        domain=NCHWC,
        kernel_shape=[1, 1],
        group=group,
        activation="Relu",
    )
    if tail.batch > 1:
        shape = np.array([tail.batch, -1, height, width])
        editor.node("Reshape", [out, editor.constant(f"{tail.out}.shape", shape)], tail.out)


def _bare_conv(editor: GraphEditor, conv: NodeProto, site: Site) -> str:
    """Collect `conv` without its Sum and ReLU; returns its output X."""
    bare = {a.name: helper.get_attribute_value(a) for a in conv.attribute if a.name != "activation"}
    return editor.node("Conv", list(conv.input[:3]), f"{site.attention.layer}.x", domain=NCHWC, **bare)


def _pooled(editor: GraphEditor, value: str, layer: str) -> str:
    """The mean over H and W of a blocked tensor; at 1x1 pixels its layout is that of (N, C, 1, 1)."""
    return editor.node("GlobalAveragePool", [value], f"{layer}.pooled", domain=NCHWC)


def _gate(site: Site) -> str:
    return f"{site.attention.layer}.gate"


_FORMS = {"op": _op, "op weights": _op_weights, "depthwise": _depthwise, "weights": _weights}
