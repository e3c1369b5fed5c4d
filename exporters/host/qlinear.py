"""int8 on this host: attention in the place of the integer addition that the plain network pays too.

onnxruntime makes a QLinearAdd in NHWC of every tail DQ, DQ → Add → Relu → Q of the *plain* network.
`lct::AttnQ` (LCT) and `lct::GateAddQ` (SE, its gate in standard operators) read and write the same
bytes, X once more for the pooling, and no other tensor. Without the library the gate is computed in
standard operators and multiplied into the scales of the convolution's weights, where these are 1x1 and
few beside X, or else into X as an integer.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from exporters.editing import GraphEditor, attribute
from exporters.functions import DOMAIN, DOMAIN_VERSION
from exporters.gate import gate_nodes
from exporters.nodes import GATE_KEY
from exporters.sites import Attention, Site
from lct_deploy.errors import ExportError

Form = Literal["op", "weights", "product"]

# Pixels of X for each input channel of its convolution from which hoisting the gate pays, seen on a Zen 4.
HOISTING_PAYS = 0.5

_CONTRIB = "com.microsoft"
_BASE = 256  # of the digits of a sum of bytes
_CHANNELS_LAST = 0  # the operators' `block` for NHWC


@dataclass(frozen=True, kw_only=True)
class _Tail:
    """A QLinearAdd's operands, each a tensor with its scale and zero point; `out` also its name."""

    x: list[str]
    identity: list[str]
    quantization: list[str]
    out: str
    conv: NodeProto
    pixels: int
    batch: int


def insert_quantized_attention(
    plain: ModelProto, sites: list[Site], *, batch: int, library: bool
) -> dict[str, Form]:
    """Give each QLinearAdd of the optimised plain network its attention, in place; the forms by layer.

    Raises ExportError where a tail is not the one QLinearAdd in NHWC that it should be.
    """
    editor = GraphEditor(plain)
    tails = {node.input[index]: node for node in _additions(plain) for index in (1, 4)}
    forms: dict[str, Form] = {}
    for site in sites:
        add = tails.get(site.scale or "")
        if add is None:
            raise ExportError(f"{site.attention.layer}: onnxruntime made no integer addition of its tail")
        tail = _read_tail(editor, add, site, batch)
        form = "op" if library else _stock_form(editor, tail)
        _FORMS[form](editor, site.attention, tail)
        editor.replace(add)
        forms[site.attention.layer] = form
    if library:
        editor.use_domain(DOMAIN, DOMAIN_VERSION)
    editor.drop_unused()
    return forms


def _stock_form(editor: GraphEditor, tail: _Tail) -> Form:
    """Weights for a 1x1 convolution, as long as X is large beside them."""
    _, inputs, *kernel = editor.array(tail.conv.input[3]).shape
    hoists = kernel == [1, 1] and tail.pixels >= HOISTING_PAYS * inputs
    return "weights" if hoists else "product"


def _additions(model: ModelProto) -> list[NodeProto]:
    return [node for node in model.graph.node if node.op_type == "QLinearAdd"]


def _read_tail(editor: GraphEditor, add: NodeProto, site: Site, batch: int) -> _Tail:
    first, second, out = list(add.input[:3]), list(add.input[3:6]), list(add.input[6:8])
    x, identity = (first, second) if first[1] == site.scale else (second, first)
    conv = editor.makers[x[0]]
    if conv.op_type != "QLinearConv" or not attribute(conv, "channels_last", 0):
        raise ExportError(f"{site.attention.layer}: onnxruntime did not lay its convolution out in NHWC")
    return _Tail(
        x=x,
        identity=identity,
        quantization=out,
        out=add.output[0],
        conv=conv,
        pixels=site.size[0] * site.size[1],
        batch=batch,
    )


def _op(editor: GraphEditor, attention: Attention, tail: _Tail) -> None:
    """One pass of our op library: pool, gate, scale, add, rectify, on bytes."""
    layer = attention.layer
    quantized = [tail.x, tail.identity, ["", *tail.quantization]]
    parameters = [
        editor.constant(f"{layer}.scales", _values(editor, quantized, 1, np.float32)),
        editor.constant(f"{layer}.zero_points", _values(editor, quantized, 2, np.uint8)),
    ]
    tensors = [tail.x[0], tail.identity[0]]
    if attention.is_lct:
        w, b = (
            editor.constant(f"{layer}.{key}", values)
            for key, values in zip("wb", attention.parameters, strict=True)
        )
        editor.node(
            "AttnQ",
            [*tensors, w, b, *parameters],
            tail.out,
            domain=DOMAIN,
            metadata={GATE_KEY: layer},
            groups=attention.groups,
            epsilon=attention.epsilon,
            block=_CHANNELS_LAST,
        )
        return
    gate = gate_nodes(editor, attention, _pooled(editor, layer, tail.x, tail), name=f"{layer}.gate")
    editor.node("GateAddQ", [*tensors, gate, *parameters], tail.out, domain=DOMAIN, block=_CHANNELS_LAST)


def _weights(editor: GraphEditor, attention: Attention, tail: _Tail) -> None:
    """The gate from U's mean, multiplied into the scales of the convolution's weights.

    The integer bias is in units of those scales, so it is multiplied too.
    """
    layer, conv = attention.layer, tail.conv
    w_scale = conv.input[4]
    gate = gate_nodes(editor, attention, _hoisted(editor, layer, tail), name=f"{layer}.gate")
    ungated = editor.constant(f"{layer}.w_scales", np.tile(editor.array(w_scale), tail.batch))
    gated = editor.node("Mul", [editor.reshaped(gate, [-1]), ungated], f"{layer}.w_scale")
    _convolve(editor, attention, tail, conv, gated)


def _product(editor: GraphEditor, attention: Attention, tail: _Tail) -> None:
    """The gate from X's mean, as the scales of a convolution of each channel of X with a one."""
    layer, channels = attention.layer, attention.channels
    gate = gate_nodes(editor, attention, _pooled(editor, layer, tail.x, tail), name=f"{layer}.gate")
    ones = editor.constant(f"{layer}.w", np.ones((channels, 1, 1, 1), np.int8))
    zeros = editor.constant(f"{layer}.w_zeros", np.zeros(channels, np.int8))
    identity = helper.make_node(
        "QLinearConv",
        [*tail.x, ones, "", zeros, *tail.x[1:]],
        [],
        domain=_CONTRIB,
        group=channels,
        channels_last=1,
    )
    _convolve(editor, attention, tail, identity, editor.reshaped(gate, [-1]))


def _convolve(editor: GraphEditor, attention: Attention, tail: _Tail, conv: NodeProto, w_scales: str) -> None:
    """`conv` with N times C scales for its weights, then the addition: a convolution for each image."""
    layer = attention.layer
    u, u_scale, u_zero, weight, _, *others = conv.input
    images = _split(editor, u, f"{layer}.image", 1, tail.batch)
    scales = _split(editor, w_scales, f"{layer}.image_scales", attention.channels, tail.batch)
    attributes = {a.name: helper.get_attribute_value(a) for a in conv.attribute}
    products = [
        editor.node(
            "QLinearConv",
            [image, u_scale, u_zero, weight, scale, *others],
            f"{layer}.product{number}",
            domain=conv.domain,
            **attributes,
        )
        for number, (image, scale) in enumerate(zip(images, scales, strict=True))
    ]
    product = editor.node("Concat", products, f"{layer}.product", axis=0) if tail.batch > 1 else products[0]
    inputs = [product, *tail.x[1:], *tail.identity, *tail.quantization]
    editor.node("QLinearAdd", inputs, tail.out, domain=_CONTRIB)


def _hoisted(editor: GraphEditor, layer: str, tail: _Tail) -> str:
    """The context of X in float32, N·C values, from the mean of what its 1x1 convolution reads."""
    u, u_scale, u_zero, weight, w_scale, *_, bias = tail.conv.input
    step, scales = editor.array(u_scale).item(), editor.array(w_scale).reshape(-1)
    weights = editor.array(weight).reshape(len(scales), -1)
    offset = editor.array(bias) * (scales * step)
    if tail.pixels * 255 < _BASE**2:
        zero = editor.array(u_zero).item() * weights.sum(axis=1, dtype=np.int64)
        offset -= zero * (scales * step)
        steps = step / tail.pixels * scales
        return _from_digits(editor, layer, _digits(editor, layer, u, tail), weights, steps, offset)
    pooled = _pooled(editor, layer, [u, u_scale, u_zero], tail)
    rows = pooled if tail.batch == 1 else editor.reshaped(pooled, [-1, weights.shape[1]])
    constants = {
        f"{layer}.hoisted": weights.astype(np.float32) * scales[:, None],
        f"{layer}.offset": offset.astype(np.float32),
    }
    inputs = [rows, *(editor.constant(name, array) for name, array in constants.items())]
    return editor.node("Gemm", inputs, f"{layer}.z", transB=1)


def _digits(editor: GraphEditor, layer: str, tensor: str, tail: _Tail) -> str:
    """The sums over H and W of a tensor's bytes, as digits to the base 256: (2, C), or (N, 2, C)."""
    ones, flat = _rows_of_ones(editor, layer, tensor, tail, 2)
    sums = editor.node("MatMulInteger", [ones, flat], f"{layer}.sums")
    base = editor.constant(f"{layer}.base", np.array([[_BASE], [1]], np.int32))
    # A cast to fewer bits drops the others: ONNX says so of integers.
    return editor.node(
        "Cast", [editor.node("Div", [sums, base], f"{layer}.higher")], f"{layer}.digits", to=TensorProto.UINT8
    )


def _from_digits(
    editor: GraphEditor,
    layer: str,
    digits: str,
    weights: NDArray[np.int8],
    steps: NDArray[np.float32],
    offset: NDArray[np.float32],
) -> str:
    """`weights` (C, K) times sums of K channels, in units of `steps` (C), plus `offset` (C).

    The integers are exact. Each place has its share of the offset, which saves an addition of its own.

    Digits are bytes, so that the weights are read as bytes too: in float32 they do not fit into the caches
    beside all others.
    """
    inputs = [
        digits,
        editor.constant(f"{layer}.hoisted", np.ascontiguousarray(weights.T)),
        editor.constant(f"{layer}.one", np.array(1, np.float32)),
        editor.constant(f"{layer}.steps", steps.astype(np.float32)),
        "",
        "",
        editor.constant(f"{layer}.offset", (offset / (_BASE + 1)).astype(np.float32)),
    ]
    products = editor.node("MatMulIntegerToFloat", inputs, f"{layer}.products", domain=_CONTRIB)
    places = editor.constant(f"{layer}.places", np.array([[_BASE, 1]], np.float32))
    return editor.node("MatMul", [places, products], f"{layer}.z")


def _split(editor: GraphEditor, value: str, name: str, size: int, parts: int) -> list[str]:
    """`value` in parts of `size` each of its first dimension."""
    if parts == 1:
        return [value]
    first, *others = (f"{name}{part}" for part in range(parts))
    sizes = editor.constant(f"{name}.sizes", np.full(parts, size))
    editor.node("Split", [value, sizes], first, others=tuple(others), axis=0)
    return [first, *others]


def _values(editor: GraphEditor, quantized: list[list[str]], index: int, dtype: DTypeLike) -> NDArray[Any]:
    """The scales or the zero points of X, identity and Y."""
    return np.array([editor.array(names[index]).item() for names in quantized], dtype)


def _pooled(editor: GraphEditor, layer: str, quantized: list[str], tail: _Tail) -> str:
    """The mean over H and W of a tensor in NHWC, in float32: (1, C) of one image, else (N, 1, C)."""
    tensor, scale, zero = quantized
    share = editor.constant(f"{layer}.share", np.array(1 / tail.pixels, np.float32))
    inputs = [*_rows_of_ones(editor, layer, tensor, tail, 1), share, scale, "", zero]
    return editor.node("MatMulIntegerToFloat", inputs, f"{layer}.pooled", domain=_CONTRIB)


def _rows_of_ones(editor: GraphEditor, layer: str, tensor: str, tail: _Tail, count: int) -> tuple[str, str]:
    """What a tensor in NHWC is summed over H and W by, `count` times, and the tensor as matrices.

    An integer product with a row of ones is exact, and takes a third of the time of dequantising and
    reducing.
    """
    rows = [tail.pixels, -1] if tail.batch == 1 else [tail.batch, tail.pixels, -1]
    shape = editor.constant(f"{layer}.pixels", np.array(rows))
    flat = editor.node("Reshape", [tensor, shape], f"{layer}.flat")
    return editor.constant(f"{layer}.ones", np.ones((count, tail.pixels), np.uint8)), flat


_FORMS = {"op": _op, "weights": _weights, "product": _product}
