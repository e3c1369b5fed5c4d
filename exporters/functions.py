"""The attention as functions of domain `lct`, version 1, with bodies in standard ONNX operators.

A runtime that has an operator of the same name may take the node over; any other inlines the body.
Bodies compute the gate in float32, whatever the precision of X.
"""

from onnx import FunctionProto, ModelProto, parser

DOMAIN = "lct"
DOMAIN_VERSION = 1

LINEAR_CONTEXT_TRANSFORM = "LinearContextTransform"
SQUEEZE_EXCITATION = "SqueezeExcitation"
NORMALIZED_SQUEEZE_EXCITATION = "NormalizedSqueezeExcitation"
ATTENTION_TAIL = "AttentionTail"  # of a residual block: LinearContextTransform, identity and ReLU

# z: the global context (N, C)
_CONTEXT = """
    axes_hw = Constant <value_ints: ints = [2, 3]> ()
    x32 = Cast <to: int = 1> (X)
    z = ReduceMean <keepdims: int = 0> (x32, axes_hw)
"""

# The same for images of any size, row by row: onnxruntime adds all pixels up one after the other, and of a
# flat map of 200x334 that is off by 3e-5, which the normalisation makes large.
_CONTEXT_BY_ROWS = """
    axis_w = Constant <value_ints: ints = [3]> ()
    axes_hw = Constant <value_ints: ints = [2, 3]> ()
    x32 = Cast <to: int = 1> (X)
    rows = ReduceMean <keepdims: int = 1> (x32, axis_w)
    z = ReduceMean <keepdims: int = 0> (rows, axes_hw)
"""

# Equations (2) and (3) of the paper: zn is z normalised within groups of channels
_NORMALIZE = """
    axis_m = Constant <value_ints: ints = [2]> ()
    flat_shape = Constant <value_ints: ints = [0, -1]> ()
    eps = Constant <value_float: float = @epsilon> ()
    one_dim = Constant <value_ints: ints = [1]> ()
    keep = Constant <value_ints: ints = [0]> ()
    rest = Constant <value_ints: ints = [-1]> ()
    groups_scalar = Constant <value_int: int = @groups> ()
    groups_dim = Reshape (groups_scalar, one_dim)
    grouped_shape = Concat <axis: int = 0> (keep, groups_dim, rest)
    grouped = Reshape (z, grouped_shape)
    mean = ReduceMean <keepdims: int = 1> (grouped, axis_m)
    centred = Sub (grouped, mean)
    squared = Mul (centred, centred)
    variance = ReduceMean <keepdims: int = 1> (squared, axis_m)
    shifted = Add (variance, eps)
    deviation = Sqrt (shifted)
    normalized = Div (centred, deviation)
    zn = Reshape (normalized, flat_shape)
"""

# Equations (2)-(4) as a LayerNormalization over the groups' m channels, whose affine is w and b: fewer
# nodes, but scales of shape (G, m) are beyond some runtimes.
_LAYER_NORMALIZED = """
    x32 = Cast <to: int = 1> (X)
    axes_hw = Constant <value_ints: ints = [2, 3]> ()
    z = GlobalAveragePool (x32)
    one_dim = Constant <value_ints: ints = [1]> ()
    keep = Constant <value_ints: ints = [0]> ()
    rest = Constant <value_ints: ints = [-1]> ()
    groups_scalar = Constant <value_int: int = @groups> ()
    groups_dim = Reshape (groups_scalar, one_dim)
    grouped_shape = Concat <axis: int = 0> (keep, groups_dim, rest)
    parameter_shape = Concat <axis: int = 0> (groups_dim, rest)
    grouped = Reshape (z, grouped_shape)
    w32 = Cast <to: int = 1> (w)
    b32 = Cast <to: int = 1> (b)
    scale = Reshape (w32, parameter_shape)
    bias = Reshape (b32, parameter_shape)
    a_grouped = LayerNormalization <axis: int = -1, epsilon: float = @epsilon> (grouped, scale, bias)
    flat_shape = Constant <value_ints: ints = [0, -1]> ()
    a = Reshape (a_grouped, flat_shape)
"""

# Equation (4)
_TRANSFORM = """
    w32 = Cast <to: int = 1> (w)
    b32 = Cast <to: int = 1> (b)
    scaled = Mul (zn, w32)
    a = Add (scaled, b32)
"""

# Equation (1): W2 ReLU(W1 context), both with biases; weights are (out, in) as in PyTorch
_EXCITE = """
    w1_32 = Cast <to: int = 1> (w1)
    b1_32 = Cast <to: int = 1> (b1)
    w2_32 = Cast <to: int = 1> (w2)
    b2_32 = Cast <to: int = 1> (b2)
    hidden = Gemm <transB: int = 1> (CONTEXT, w1_32, b1_32)
    rectified = Relu (hidden)
    a = Gemm <transB: int = 1> (rectified, w2_32, b2_32)
"""

# Equation (5)
_SCALE = """
    gate = Sigmoid (a)
    gate_hw = Unsqueeze (gate, axes_hw)
    gate_x = CastLike (gate_hw, X)
    Y = Mul (X, gate_x)
"""

# Equation (5), and the end of the block
_TAIL = (
    _SCALE.replace("Y = Mul", "branch = Mul")
    + """
    sum = Add (branch, identity)
    Y = Relu (sum)
"""
)

_GROUPED = "<groups, epsilon>"
FUNCTIONS = {  # name: signature and body
    LINEAR_CONTEXT_TRANSFORM: (f"{_GROUPED} (X, w, b)", _CONTEXT + _NORMALIZE + _TRANSFORM + _SCALE),
    ATTENTION_TAIL: (f"{_GROUPED} (X, identity, w, b)", _CONTEXT + _NORMALIZE + _TRANSFORM + _TAIL),
    SQUEEZE_EXCITATION: ("(X, w1, b1, w2, b2)", _CONTEXT + _EXCITE.replace("CONTEXT", "z") + _SCALE),
    NORMALIZED_SQUEEZE_EXCITATION: (
        f"{_GROUPED} (X, w1, b1, w2, b2)",
        _CONTEXT + _NORMALIZE + _EXCITE.replace("CONTEXT", "zn") + _SCALE,
    ),
}


def attention_function(
    op: str, opset: int, *, layer_normalization: bool = False, by_rows: bool = False
) -> FunctionProto:
    """The model-local function called `op`, its body in the standard operators of `opset`.

    In every body the value `gate` is the gate (N, C) in float32. With `layer_normalization` LCT's is
    the shorter one; `by_rows` keeps the mean over large images exact.
    """
    signature, body = FUNCTIONS[op]
    if by_rows:
        body = body.replace(_CONTEXT, _CONTEXT_BY_ROWS)
    if layer_normalization and op == LINEAR_CONTEXT_TRANSFORM:
        body = _LAYER_NORMALIZED + _SCALE
    return parser.parse_function(
        f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]>\n{op} {signature} => (Y) {{{body}}}'
    )


def standard_opset(model: ModelProto) -> int:
    """The version of the standard operator set that `model` is written in."""
    return next(entry.version for entry in model.opset_import if entry.domain == "")


def with_layer_normalization(model: ModelProto) -> ModelProto:
    """A copy of `model` whose LCT functions have the shorter body."""
    copy = ModelProto()
    copy.CopyFrom(model)
    opset = standard_opset(model)
    functions = [attention_function(f.name, opset, layer_normalization=True) for f in model.functions]
    del copy.functions[:]
    copy.functions.extend(functions)
    return copy
