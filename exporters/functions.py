"""The attention as functions of domain `lct`, version 1, with bodies in standard ONNX operators.

A runtime that has an operator of the same name may take the node over; any other inlines the body.
Bodies compute the gate in float32, whatever the precision of X.
"""

from onnx import FunctionProto, parser

DOMAIN = "lct"
DOMAIN_VERSION = 1

LINEAR_CONTEXT_TRANSFORM = "LinearContextTransform"
SQUEEZE_EXCITATION = "SqueezeExcitation"
NORMALIZED_SQUEEZE_EXCITATION = "NormalizedSqueezeExcitation"

# z: the global context (N, C)
_CONTEXT = """
    axes_hw = Constant <value_ints: ints = [2, 3]> ()
    x32 = Cast <to: int = 1> (X)
    z = ReduceMean <keepdims: int = 0> (x32, axes_hw)
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

_GROUPED = "<groups, epsilon>"
_FUNCTIONS = {
    LINEAR_CONTEXT_TRANSFORM: (f"{_GROUPED} (X, w, b)", _CONTEXT + _NORMALIZE + _TRANSFORM + _SCALE),
    SQUEEZE_EXCITATION: ("(X, w1, b1, w2, b2)", _CONTEXT + _EXCITE.replace("CONTEXT", "z") + _SCALE),
    NORMALIZED_SQUEEZE_EXCITATION: (
        f"{_GROUPED} (X, w1, b1, w2, b2)",
        _CONTEXT + _NORMALIZE + _EXCITE.replace("CONTEXT", "zn") + _SCALE,
    ),
}


def attention_function(op: str, opset: int, *, with_gate: bool = False) -> FunctionProto:
    """The model-local function called `op`, its body in the standard operators of `opset`.

    With `with_gate` it has a second output, the gate (N, C) in float32, for verification.
    """
    signature, body = _FUNCTIONS[op]
    outputs = "(Y, gate)" if with_gate else "(Y)"
    return parser.parse_function(
        f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]>\n{op} {signature} => {outputs} {{{body}}}'
    )
