"""The CPU operators in onnxruntime, against the paper's equations in float64."""

import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from lct_deploy.kernels import cpu

ROOT = Path(__file__).parent.parent
NHWC, NCHW = 0, 1
LAYOUTS = (NHWC, NCHW, 8, 16)
GATE_ERROR = 1e-6

Array = NDArray[Any]
Floats = NDArray[np.float32]


def test_the_library_is_built_where_there_is_a_compiler() -> None:
    assert (cpu.op_library() is not None) == (shutil.which("c++") is not None)


built = pytest.mark.skipif(cpu.op_library() is None, reason="no C++ compiler")


# Arrays are (N, C, H, W) throughout; `pack` gives them the layout of an operator and `unpack` takes it back.


@dataclass(frozen=True)
class Case:
    n: int = 2
    c: int = 48
    h: int = 5
    w: int = 7
    groups: int = 6
    block: int = NCHW
    epsilon: float = 1e-5
    threads: int = 2
    seed: int = 0

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.n, self.c, self.h, self.w


def pack(array: Array, block: int) -> Array:
    n, c, h, w = array.shape
    if block == NHWC:
        return np.ascontiguousarray(array.transpose(0, 2, 3, 1))
    if block == NCHW:
        return array
    blocks = array.reshape(n, c // block, block, h, w).transpose(0, 1, 3, 4, 2)
    return np.ascontiguousarray(blocks).reshape(n, c, h, w)


def unpack(array: Array, block: int) -> Array:
    if block == NHWC:
        return array.transpose(0, 3, 1, 2)
    if block == NCHW:
        return array
    n, c, h, w = array.shape
    return array.reshape(n, c // block, h, w, block).transpose(0, 1, 4, 2, 3).reshape(n, c, h, w)


def session(
    op: str,
    inputs: Mapping[str, Array],
    attributes: Mapping[str, Any],
    *,
    threads: int = 1,
    copy_with: str | None = None,
    outputs: tuple[str, ...] = ("Y",),
) -> onnxruntime.InferenceSession:
    """A graph of one operator. X and identity are its inputs, or copies by an operator f(a, a) = a."""
    kind = helper.np_dtype_to_tensor_dtype(next(iter(inputs.values())).dtype)
    sources = {name: name if copy_with is None else f"{name}_source" for name in ("X", "identity")}
    copies = [helper.make_node(copy_with, [s, s], [name]) for name, s in sources.items() if copy_with]
    node = helper.make_node(op, list(inputs), list(outputs), domain=cpu.DOMAIN, **attributes)
    graph = helper.make_graph(
        [*copies, node],
        op,
        [_value(sources.get(name, name), array) for name, array in inputs.items()],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT if name == "gate" else kind, None)
            for name in outputs
        ],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(cpu.DOMAIN, cpu.VERSION)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), _options(threads), providers=["CPUExecutionProvider"]
    )


def _value(name: str, array: Array) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors are asserted upon, not printed
    options.register_custom_ops_library(str(cpu.op_library()))
    return options


def attributes_of(op: str, case: Case) -> dict[str, Any]:
    gate = {} if op.startswith("GateAdd") else {"groups": case.groups, "epsilon": case.epsilon}
    return {"block": case.block, **gate}


def packed(inputs: Mapping[str, Array], block: int) -> dict[str, Array]:
    return {name: pack(array, block) if array.ndim == 4 and name != "gate" else array
            for name, array in inputs.items()}  # fmt: skip


def run(op: str, case: Case, inputs: Mapping[str, Array]) -> Array:
    feed = packed(inputs, case.block)
    made = session(op, feed, attributes_of(op, case), threads=case.threads)
    return unpack(only_output(made, feed), case.block)


def run_with_gate(op: str, case: Case, inputs: Mapping[str, Array]) -> tuple[Array, Array]:
    feed = packed(inputs, case.block)
    made = session(op, feed, attributes_of(op, case), threads=case.threads, outputs=("Y", "gate"))
    y, gate = all_outputs(made, feed)
    return unpack(y, case.block), gate


def all_outputs(made: onnxruntime.InferenceSession, feed: Mapping[str, Array]) -> list[Array]:
    return cast("list[Any]", made.run(None, dict(feed)))


def only_output(made: onnxruntime.InferenceSession, feed: Mapping[str, Array]) -> Array:
    return all_outputs(made, feed)[0]


# The reference


def reference_gate(x: Array, w: Array, b: Array, groups: int, epsilon: float) -> Array:
    return reference_gate_of_means(x.astype(np.float64).mean(axis=(2, 3)), w, b, groups, epsilon)


def reference_gate_of_means(means: Array, w: Array, b: Array, groups: int, epsilon: float) -> Array:
    z = means.reshape(len(means), groups, -1)
    centred = z - z.mean(axis=2, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=2, keepdims=True) + epsilon)
    a = w.astype(np.float64) * (centred / deviation).reshape(means.shape) + b
    return np.exp(-np.logaddexp(0, -a))


def assert_float_tail(y: Array, x: Array, identity: Array, gate: Array) -> None:
    wide = x.astype(np.float64) * gate[:, :, None, None]
    expected = np.maximum(wide + identity, 0)
    rounding = 3e-7 * (np.abs(wide) + np.abs(identity))
    assert y.dtype == np.float32
    assert (np.abs(y - expected) <= GATE_ERROR * np.abs(x) + rounding).all()


def assert_uint8_tail(y: Array, x: Array, identity: Array, gate: Array, scales: Array, zeros: Array) -> None:
    """Exactly the rounded value, where an error of the gate or of rounding does not carry it over a tie."""
    s, z = scales.astype(np.float64), zeros.astype(np.int64)
    worth = s[:2] / s[2]
    term, other = worth[0] * (x - z[0]), worth[1] * (identity - z[1])
    value = term * gate[:, :, None, None] + other
    error = (GATE_ERROR + 3e-7) * np.abs(term) + 3e-7 * np.abs(other) + 3e-7
    if worth.sum() <= 4.001 and np.abs(gate).max() <= 1:  # in fixed point, with so many bits of fraction
        error += 2.5 / 2 ** (6 if worth.sum() <= 2 else 5)
    assert y.dtype == np.uint8
    assert (y >= np.clip(np.rint(np.maximum(value - error, 0)) + z[2], 0, 255)).all()
    assert (y <= np.clip(np.rint(np.maximum(value + error, 0)) + z[2], 0, 255)).all()


# Any shape, layout and number of threads


@st.composite
def cases(draw: st.DrawFn) -> Case:
    block = draw(st.sampled_from(LAYOUTS))
    if block in (NHWC, NCHW):
        groups = draw(st.integers(1, 12))
        c = groups * draw(st.integers(1, 40))
    else:
        c = block * draw(st.integers(1, 8))
        groups = draw(st.sampled_from([g for g in range(1, c + 1) if c % g == 0]))
    return Case(
        n=draw(st.integers(1, 4)),
        c=c,
        h=draw(st.integers(1, 18)),
        w=draw(st.integers(1, 18)),
        groups=groups,
        block=block,
        epsilon=draw(st.sampled_from([1e-3, 1e-5, 1e-8])),
        threads=draw(st.sampled_from([1, 2, 4])),
        seed=draw(st.integers(0, 999)),
    )


# What decides between schedules and between loops: large samples, huge groups, more pixels than 16 bits hold.
LARGE = [
    Case(n=1, c=64, h=112, w=112, groups=16, block=block) for block in LAYOUTS
] + [
    Case(n=1, c=256, h=56, w=56, groups=64, block=16, threads=4),
    Case(n=1, c=256, h=56, w=56, groups=64, block=NHWC, threads=4),
    Case(n=3, c=200, h=40, w=40, groups=50, block=NHWC),
    Case(n=1, c=2048, h=7, w=7, groups=64, block=8),
    Case(n=1, c=512, h=20, w=20, groups=1, block=16),
    Case(n=2, c=512, h=20, w=20, groups=1, block=NCHW),
    Case(n=1, c=1, h=1, w=1, groups=1, block=NHWC),
]  # fmt: skip


def random_floats(case: Case) -> dict[str, Array]:
    rng = np.random.default_rng(case.seed)
    mean = rng.normal(size=(case.n, case.c, 1, 1))
    return {
        "X": (mean + rng.normal(size=case.shape)).astype(np.float32),
        "identity": rng.normal(size=case.shape).astype(np.float32),
        "w": rng.normal(size=case.c).astype(np.float32),
        "b": rng.normal(size=case.c).astype(np.float32),
    }


def random_bytes(case: Case) -> dict[str, Array]:
    rng = np.random.default_rng(case.seed)
    low = rng.integers(0, 200, (case.n, case.c, 1, 1))
    return {
        "X": (low + rng.integers(0, 56, case.shape)).astype(np.uint8),
        "identity": rng.integers(0, 256, case.shape, dtype=np.uint8),
        "w": rng.normal(size=case.c).astype(np.float32),
        "b": rng.normal(size=case.c).astype(np.float32),
        "scales": rng.uniform(0.01, 0.05, 3).astype(np.float32),
        "zero_points": rng.integers(0, [256, 256, 128], dtype=np.uint8),
    }


def check_attn(case: Case, inputs: dict[str, Array]) -> None:
    x, identity, w, b = inputs.values()
    gate = reference_gate(x, w, b, case.groups, case.epsilon)
    assert_float_tail(run("Attn", case, inputs), x, identity, gate)


def check_attn_q(case: Case, inputs: dict[str, Array]) -> None:
    x, identity, w, b, scales, zeros = inputs.values()
    real = float(scales[0]) * (x.astype(np.float64) - zeros[0])
    gate = reference_gate(real, w, b, case.groups, case.epsilon)
    assert_uint8_tail(run("AttnQ", case, inputs), x, identity, gate, scales, zeros)


def check_gate_add(case: Case, gate_rank: int) -> None:
    x, identity, _, _ = random_floats(case).values()
    gate = np.random.default_rng(1).uniform(0, 1, (case.n, case.c)).astype(np.float32)
    shaped = gate.reshape(gate.shape + (1,) * (gate_rank - 2))
    assert_float_tail(run("GateAdd", case, {"X": x, "identity": identity, "gate": shaped}), x, identity, gate)


def check_gate_add_q(case: Case, gate_rank: int) -> None:
    x, identity, _, _, scales, zeros = random_bytes(case).values()
    gate = np.random.default_rng(1).uniform(0, 1, (case.n, case.c)).astype(np.float32)
    shaped = gate.reshape(gate.shape + (1,) * (gate_rank - 2))
    inputs = {"X": x, "identity": identity, "gate": shaped, "scales": scales, "zero_points": zeros}
    assert_uint8_tail(run("GateAddQ", case, inputs), x, identity, gate, scales, zeros)


@built
@settings(max_examples=150, deadline=None)
@given(cases())
def test_attn(case: Case) -> None:
    check_attn(case, random_floats(case))


@built
@settings(max_examples=150, deadline=None)
@given(cases())
def test_attn_q(case: Case) -> None:
    check_attn_q(case, random_bytes(case))


@built
@settings(max_examples=60, deadline=None)
@given(cases(), st.sampled_from([2, 4]))
def test_gate_add(case: Case, gate_rank: int) -> None:
    check_gate_add(case, gate_rank)


@built
@settings(max_examples=60, deadline=None)
@given(cases(), st.sampled_from([2, 4]))
def test_gate_add_q(case: Case, gate_rank: int) -> None:
    check_gate_add_q(case, gate_rank)


def check_large() -> None:
    for case in LARGE:
        check_attn(case, random_floats(case))
        check_attn_q(case, random_bytes(case))
        check_gate_add(case, 2)
        check_gate_add_q(case, 4)
    for hoist in LARGE_HOISTS:
        check_hoist(hoist, random_hoist(hoist))


@built
@pytest.mark.parametrize("instructions", ["", "baseline", "avx2"])
def test_large_samples_with_each_instruction_set(instructions: str) -> None:
    """In a process of its own, for the choice is made once; "" is what the processor has."""
    environment = {**os.environ, "LCT_CPU_ISA": instructions} if instructions else dict(os.environ)
    code = "from tests import test_cpu_ops; test_cpu_ops.check_large()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# The gate as a second output


def check_gate(op: str, case: Case) -> None:
    make_inputs, _ = OPS[op]
    inputs = make_inputs(case)
    x = inputs["X"].astype(np.float64)
    if op == "AttnQ":
        x = float(inputs["scales"][0]) * (x - inputs["zero_points"][0])
    y, gate = run_with_gate(op, case, inputs)
    expected = reference_gate(x, inputs["w"], inputs["b"], case.groups, case.epsilon)
    assert gate.dtype == np.float32
    assert gate.shape == (case.n, case.c)
    assert np.abs(gate - expected).max() <= GATE_ERROR
    assert (y == run(op, case, inputs)).all()


@built
@pytest.mark.parametrize("op", ["Attn", "AttnQ"])
@settings(max_examples=50, deadline=None)
@given(case=cases())
def test_the_gate_is_an_output_where_the_node_has_one(op: str, case: Case) -> None:
    check_gate(op, case)


@built
@pytest.mark.parametrize("op", ["Attn", "AttnQ"])
@pytest.mark.parametrize("case", LARGE, ids=repr)
def test_the_gate_of_large_samples(op: str, case: Case) -> None:
    check_gate(op, case)


@built
def test_the_gate_is_the_one_that_scales() -> None:
    """Bit by bit: without an identity, Y of ones is the gate."""
    case = Case(c=64, groups=8, block=16)
    inputs = random_floats(case)
    inputs["X"][:, :, 0, 0] = 1
    y, gate = run_with_gate("Attn", case, inputs | {"identity": np.zeros(case.shape, np.float32)})
    assert (y[:, :, 0, 0] == gate).all()


@built
@pytest.mark.parametrize("op", ["Attn", "AttnQ"])
def test_the_gate_of_no_pixels_is_no_number(op: str) -> None:
    make_inputs, _ = OPS[op]
    case = Case(h=0)
    _, gate = run_with_gate(op, case, make_inputs(case))
    assert gate.shape == (case.n, case.c)
    assert np.isnan(gate).all()


@built
def test_an_output_without_a_name_is_none() -> None:
    case = Case()
    feed = random_floats(case)
    model = onnx.parser.parse_model("""
<ir_version: 10, opset_import: ["": 20, "lct": 1]>
g (float[2, 48, 5, 7] X, float[2, 48, 5, 7] identity, float[48] w, float[48] b) => (float[2, 48, 5, 7] Y) {
    Y = lct.Attn <block: int = 1, groups: int = 6, epsilon: float = 1e-5> (X, identity, w, b)
}""")
    model.graph.node[0].output.append("")
    made = onnxruntime.InferenceSession(model.SerializeToString(), _options(1))
    assert (only_output(made, feed) == run("Attn", case, feed)).all()


@built
def test_an_addition_has_no_second_output() -> None:
    x, identity, _, _ = random_floats(Case()).values()
    inputs = {"X": x, "identity": identity, "gate": _ones(2, 48)}
    with pytest.raises(Exception, match=r"(?i)output"):
        session("GateAdd", inputs, {"block": NCHW}, outputs=("Y", "other"))


# The gate hoisted before a 1x1 convolution, and multiplied into its weights


@dataclass(frozen=True)
class Hoist:
    n: int = 2
    i: int = 32
    o: int = 48
    h: int = 5
    w: int = 7
    groups: int = 6
    block: int = 16
    epsilon: float = 1e-5
    threads: int = 2
    seed: int = 0


@st.composite
def hoists(draw: st.DrawFn) -> Hoist:
    block = draw(st.sampled_from([8, 16]))
    o = block * draw(st.integers(1, 12))
    return Hoist(
        n=draw(st.integers(1, 4)),
        i=block * draw(st.integers(1, 12)),
        o=o,
        h=draw(st.integers(1, 18)),
        w=draw(st.integers(1, 18)),
        groups=draw(st.sampled_from([g for g in range(1, o + 1) if o % g == 0])),
        block=block,
        epsilon=draw(st.sampled_from([1e-3, 1e-5, 1e-8])),
        threads=draw(st.sampled_from([1, 2, 4])),
        seed=draw(st.integers(0, 999)),
    )


# A residual block of each stage but the last, few channels of many pixels, and a single group.
LARGE_HOISTS = [
    Hoist(n=1, i=64, o=256, h=56, w=56, groups=64),
    Hoist(n=2, i=128, o=512, h=28, w=28, groups=64, block=8),
    Hoist(n=1, i=256, o=1024, h=14, w=14, groups=64, threads=4),
    Hoist(n=1, i=16, o=32, h=112, w=112, groups=4, threads=4),
    Hoist(n=3, i=8, o=512, h=40, w=40, groups=1, block=8),
]


def random_hoist(case: Hoist) -> dict[str, Floats]:
    rng = np.random.default_rng(case.seed)
    mean = rng.normal(size=(case.n, case.i, 1, 1))
    return {
        "U": (mean + rng.normal(size=(case.n, case.i, case.h, case.w))).astype(np.float32),
        "W": (rng.normal(size=(case.o, case.i)) / np.sqrt(case.i)).astype(np.float32),
        "bias": rng.normal(size=case.o).astype(np.float32),
        "w": rng.normal(size=case.o).astype(np.float32),
        "b": rng.normal(size=case.o).astype(np.float32),
    }


def pack_weights(weights: Array, block: int) -> Array:
    """(…, O, I) with outputs in blocks, as (O, I, 1, 1) or, of several samples, (N · O, I, 1, 1)."""
    o, i = weights.shape[-2:]
    blocks = weights.reshape(-1, o // block, block, i).transpose(0, 1, 3, 2)
    return np.ascontiguousarray(blocks).reshape(-1, i, 1, 1)


def packed_hoist(inputs: Mapping[str, Array], block: int) -> dict[str, Array]:
    return {**inputs, "U": pack(inputs["U"], block), "W": pack_weights(inputs["W"], block)}


def run_hoist(case: Hoist, inputs: Mapping[str, Array], outputs: tuple[str, ...]) -> list[Array]:
    feed = packed_hoist(inputs, case.block)
    attributes = {"block": case.block, "groups": case.groups, "epsilon": case.epsilon}
    made = session("GateWeights", feed, attributes, threads=case.threads, outputs=outputs)
    return all_outputs(made, feed)


def check_hoist(case: Hoist, inputs: Mapping[str, Array]) -> None:
    u, weights, bias, w, b = inputs.values()
    means = u.astype(np.float64).mean(axis=(2, 3)) @ weights.astype(np.float64).T + bias
    expected = reference_gate_of_means(means, w, b, case.groups, case.epsilon)
    scaled, biases, gate = run_hoist(case, inputs, ("weights", "biases", "gate"))
    assert gate.shape == (case.n, case.o)
    assert np.abs(gate - expected).max() <= GATE_ERROR
    assert scaled.dtype == biases.dtype == gate.dtype == np.float32
    assert (scaled == pack_weights(gate[:, :, None] * weights, case.block)).all()
    assert (biases == (gate * bias).ravel()).all()


@built
@settings(max_examples=150, deadline=None)
@given(hoists())
def test_gate_weights(case: Hoist) -> None:
    check_hoist(case, random_hoist(case))


@built
@pytest.mark.parametrize("case", LARGE_HOISTS, ids=repr)
def test_gate_weights_of_large_samples(case: Hoist) -> None:
    check_hoist(case, random_hoist(case))
    without_gate = run_hoist(case, random_hoist(case), ("weights", "biases"))
    with_gate = run_hoist(case, random_hoist(case), ("weights", "biases", "gate"))
    assert all((a == b).all() for a, b in zip(without_gate, with_gate, strict=False))


@built
@pytest.mark.parametrize("offset", [0, 1e3])
def test_gate_weights_where_outputs_nearly_cancel(offset: float) -> None:
    """Terms 10⁵ times their sum, as summing in float32 would not survive them."""
    case = Hoist(n=1, i=256, o=64, groups=8)
    inputs = random_hoist(case)
    signs = np.tile([1, -1], case.i // 2).astype(np.float32)
    u = inputs["U"] * 0 + offset
    u[:, 0] += inputs["U"][:, 0]
    check_hoist(case, inputs | {"U": u, "W": inputs["W"] * 0.01 + signs})


@built
@pytest.mark.parametrize("value", [0.0, 3.7, 1e18])
def test_gate_weights_of_constant_inputs(value: float) -> None:
    case = Hoist(n=1)
    inputs = random_hoist(case)
    check_hoist(case, inputs | {"U": np.full_like(inputs["U"], value)})


@built
def test_gate_weights_of_no_samples() -> None:
    case = Hoist(n=0)
    shapes = [a.shape for a in run_hoist(case, random_hoist(case), ("weights", "biases", "gate"))]
    assert shapes == [(0, case.i, 1, 1), (0,), (0, case.o)]


@built
def test_the_weights_of_one_sample_have_a_known_shape() -> None:
    """Or onnxruntime knows none behind the convolution that uses them, and reuses no memory there."""
    case = Hoist(n=1)
    feed = packed_hoist(random_hoist(case), case.block)
    attributes = {"block": case.block, "groups": case.groups, "epsilon": case.epsilon}
    made = session("GateWeights", feed, attributes, outputs=("weights", "biases"))
    assert [list(o.shape) for o in made.get_outputs()] == [[case.o, case.i, 1, 1], [case.o]]


@built
@pytest.mark.parametrize(
    ("changed", "attributes", "message"),
    [
        ({}, {"block": 1}, "block is 1, not 8 or 16"),
        ({}, {"block": 0}, "block is 0, not 8 or 16"),
        ({}, {"groups": 7}, "48 channels do not divide into 7 groups"),
        ({"U": np.ones((2, 32, 35), np.float32)}, {}, "U has 3 dimensions, not 4"),
        ({"U": np.ones((2, 24, 5, 7), np.float32)}, {}, "24 channels do not divide into blocks of 16"),
        ({"U": np.ones((2, 32, 0, 7), np.float32)}, {}, "U holds no pixels to pool"),
        ({"W": np.ones((48, 16, 1, 1), np.float32)}, {}, "W must have the shape (O, 32, 1, 1)"),
        ({"W": np.ones((48, 32), np.float32)}, {}, "W must have the shape (O, 32, 1, 1)"),
        ({"W": np.ones((48, 32, 3, 3), np.float32)}, {}, "W must have the shape (O, 32, 1, 1)"),
        ({"W": np.ones((40, 32, 1, 1), np.float32)}, {}, "O a multiple of 16"),
        ({"bias": np.ones(47, np.float32)}, {}, "bias must hold one value for each of 48 outputs"),
        ({"w": np.ones(47, np.float32)}, {}, "w and b must hold one value for each of 48 channels"),
        ({"b": np.ones((1, 48), np.float32)}, {}, "w and b must hold one value for each of 48 channels"),
    ],
)
def test_illegal_weights_are_named(
    changed: dict[str, Array], attributes: dict[str, int], message: str
) -> None:
    case = Hoist()
    feed = packed_hoist(random_hoist(case), case.block) | changed
    legal = {"block": case.block, "groups": case.groups, "epsilon": case.epsilon}
    with pytest.raises(Exception) as caught:  # noqa: PT011  # onnxruntime's share no base class
        all_outputs(session("GateWeights", feed, legal | attributes, outputs=("weights", "biases")), feed)
    assert "lct.GateWeights: " in str(caught.value)
    assert message in str(caught.value)


# Extreme values


def zeros(case: Case) -> Array:
    return np.zeros(case.shape)


def constant(case: Case) -> Array:
    return np.full(case.shape, 3.7)


def nearly_tied(case: Case) -> Array:
    """Channels that differ by a millionth of their mean: pooling in float32 would drown it."""
    steps = np.arange(case.c) % 8 * 2.0**-10
    return np.broadcast_to(1000 + steps[None, :, None, None], case.shape)


def huge(case: Case) -> Array:
    return np.random.default_rng(0).normal(size=case.shape) * 1e18


def tiny(case: Case) -> Array:
    return np.random.default_rng(0).normal(size=case.shape) * 1e-30


@built
@pytest.mark.parametrize("block", LAYOUTS)
@pytest.mark.parametrize("values", [zeros, constant, nearly_tied, huge, tiny])
def test_attn_with_extreme_inputs(block: int, values: Callable[[Case], Array]) -> None:
    case = Case(c=64, h=56, w=56, groups=8, block=block)
    inputs = random_floats(case)
    check_attn(case, inputs | {"X": values(case).astype(np.float32)})


@built
@pytest.mark.parametrize("weight", [0.0, 30.0, 1e4, -1e30])
@pytest.mark.parametrize("bias", [0.0, 100.0, -100.0])
def test_the_gate_is_right_however_large_its_argument(weight: float, bias: float) -> None:
    case = Case(c=32, groups=4)
    full = np.full(case.c, weight, np.float32)
    check_attn(case, random_floats(case) | {"w": full, "b": np.full(case.c, bias, np.float32)})


@built
def test_a_nan_stays_in_its_group() -> None:
    case = Case(c=64, groups=8)
    inputs = random_floats(case)
    x = inputs["X"].copy()
    x[1, 9, 2, 2] = np.nan
    y = run("Attn", case, inputs | {"X": x})
    assert np.isnan(y[1, 8:16]).all()
    y[1, 8:16] = 0
    assert not np.isnan(y).any()


@built
@pytest.mark.parametrize("block", LAYOUTS)
@pytest.mark.parametrize("value", [0, 255])
def test_attn_q_with_constant_bytes(block: int, value: int) -> None:
    """In one channel of a group: an error that all share, such as one overflow, centring would hide."""
    case = Case(c=32, h=70, w=70, groups=4, block=block)
    inputs = random_bytes(case)
    x = inputs["X"].copy()
    x[:, ::8] = value
    check_attn_q(case, inputs | {"X": x})


@built
@pytest.mark.parametrize("scales", [(1, 1, 1), (1e-3, 1e3, 1), (1e3, 1e-3, 1), (1, 1, 1e6), (1, 1, 1e-6)])
@pytest.mark.parametrize("zero_points", [(0, 0, 0), (255, 255, 0), (0, 128, 255), (128, 0, 7)])
def test_attn_q_with_extreme_scales(scales: tuple[float, ...], zero_points: tuple[int, ...]) -> None:
    case = Case(c=64, groups=8, block=16)
    quantization = {
        "scales": np.array(scales, np.float32),
        "zero_points": np.array(zero_points, np.uint8),
    }
    inputs = random_bytes(case) | quantization
    inputs["identity"][0, 0] = zero_points[1]
    inputs["X"][0, 0] = zero_points[0]
    check_attn_q(case, inputs)


@built
@pytest.mark.parametrize("block", LAYOUTS)
@pytest.mark.parametrize("gate", [1.0, 1000.0, -1000.0, 1e30])
def test_a_gate_may_be_large(block: int, gate: float) -> None:
    """Sums that no 16 bits hold: Y is then at one of its ends."""
    case = Case(c=128, block=block)
    x, identity, _, _, _, _ = random_bytes(case).values()
    x[:, ::2] = 0
    gates = np.full((case.n, case.c), gate, np.float32)
    gates[:, ::2] = 0.5
    inputs = {
        "X": x,
        "identity": identity,
        "gate": gates,
        "scales": np.ones(3, np.float32),
        "zero_points": np.zeros(3, np.uint8),
    }
    y = run("GateAddQ", case, inputs)
    expected = np.clip(x * gates.astype(np.float64)[:, :, None, None] + identity, 0, 255)
    assert (y == expected).all()


@built
def test_ties_round_to_a_neighbour_before_the_zero_point_is_added() -> None:
    x = np.zeros((1, 64, 1, 1), np.uint8)
    identity = np.arange(64, dtype=np.uint8).reshape(x.shape)
    inputs = {
        "X": x,
        "identity": identity,
        "gate": np.ones((1, 64), np.float32),
        "scales": np.array([1, 0.5, 1], np.float32),
        "zero_points": np.array([0, 0, 3], np.uint8),
    }
    y = run("GateAddQ", Case(n=1, c=64), inputs)
    assert (np.abs(y.ravel() - (identity.ravel() * 0.5 + 3)) <= 0.5).all()


@built
@pytest.mark.parametrize("op", ["Attn", "AttnQ"])
@pytest.mark.parametrize("empty", [{"n": 0}, {"h": 0}, {"w": 0}])
def test_nothing_in_nothing_out(op: str, empty: dict[str, int]) -> None:
    case = replace(Case(), **empty)
    inputs = random_floats(case) if op == "Attn" else random_bytes(case)
    assert run(op, case, inputs).shape == case.shape


# Sharing memory and threads


OPS = {
    "Attn": (random_floats, "Max"),
    "AttnQ": (random_bytes, "BitwiseAnd"),
}


@built
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "case", [Case(c=64, h=56, w=56, groups=8, block=block) for block in LAYOUTS], ids=repr
)
@pytest.mark.parametrize("op", OPS)
def test_the_output_may_take_an_input_s_memory(op: str, case: Case, threads: int) -> None:
    """X and identity come from nodes of the graph, so that onnxruntime writes Y over one of them."""
    make_inputs, copy = OPS[op]
    inputs = make_inputs(case)
    feed = packed(inputs, case.block)
    made = session(op, feed, attributes_of(op, case), threads=threads, copy_with=copy)
    sources = {**feed, "X_source": feed["X"], "identity_source": feed["identity"]}
    sources = {name: array for name, array in sources.items() if name not in ("X", "identity")}
    y = unpack(only_output(made, sources), case.block)
    assert (y == run(op, case, inputs)).all()


# X, identity and Y of 64 MiB each; Y ends in a mean, so that it is no output that needs memory of its own.
_MEMORY_USED = """
import re, sys
from pathlib import Path
import numpy as np, onnxruntime
from onnx import parser
model = parser.parse_model('''
<ir_version: 10, opset_import: ["": 20, "lct": 1]>
g (float[N, 64, 512, 512] x, float[64] w, float[64] b) => (float[N, 64, 1, 1] mean) {
    X = Relu (x)
    identity = Abs (x)
    Y = lct.Attn <block: int = 1, groups: int = 16, epsilon: float = 1e-5> (X, identity, w, b)
    mean = GlobalAveragePool (Y)
}''')
options = onnxruntime.SessionOptions()
options.register_custom_ops_library(sys.argv[1])
options.enable_cpu_mem_arena = False
session = onnxruntime.InferenceSession(model.SerializeToString(), options)
w = np.ones(64, np.float32)
feed = {"x": np.ones((1, 64, 512, 512), np.float32), "w": w, "b": w}
used = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = used()
session.run(None, feed)
print((used() - before) / feed["x"].nbytes)
"""


@built
@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_onnxruntime_does_reuse_an_input_s_memory() -> None:
    """Also where the graph declares no shape for Y: inference gives it."""
    code = [sys.executable, "-c", _MEMORY_USED, str(cpu.op_library())]
    done = subprocess.run(code, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 2.5  # X and identity; Y would be the third


@built
def test_an_unknown_shape_is_no_error() -> None:
    model = onnx.parser.parse_model("""
<ir_version: 10, opset_import: ["": 20, "lct": 1]>
g (float[N] flat, int64[K] shape, float[C] w, float[C] b) => (float[A, B, D, E] Y) {
    X = Reshape (flat, shape)
    Y = lct.Attn <block: int = 1, groups: int = 2, epsilon: float = 1e-5> (X, X, w, b)
}""")
    made = onnxruntime.InferenceSession(model.SerializeToString(), _options(1))
    case = Case(n=1, c=8, groups=2)
    x, _, w, b = random_floats(case).values()
    y = only_output(made, {"flat": x.ravel(), "shape": np.array(case.shape), "w": w, "b": b})
    assert_float_tail(y, x, x, reference_gate(x, w, b, 2, 1e-5))


@built
def test_one_session_serves_several_threads() -> None:
    case = Case(c=64, h=20, w=20, groups=8, block=16)
    several = [packed(random_floats(replace(case, seed=seed)), case.block) for seed in range(8)]
    made = session("Attn", several[0], attributes_of("Attn", case), threads=2)
    expected = [only_output(made, feed) for feed in several]

    def again(feed: dict[str, Array]) -> Array:
        return only_output(made, feed)

    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            for y, alone in zip(pool.map(again, several), expected, strict=True):
                assert (y == alone).all()


@built
def test_a_library_registers_with_many_sessions() -> None:
    case = Case()
    feed = random_floats(case)
    sessions = [session("Attn", feed, attributes_of("Attn", case)) for _ in range(3)]
    first, *others = [only_output(made, feed) for made in sessions]
    assert all((other == first).all() for other in others)


# What is not legal is said


def refused(op: str, inputs: Mapping[str, Array], attributes: Mapping[str, Any]) -> str:
    with pytest.raises(Exception) as caught:  # noqa: PT011  # onnxruntime's share no base class
        only_output(session(op, inputs, attributes), inputs)
    return str(caught.value)


def _without(attributes: dict[str, float], name: str) -> dict[str, float]:
    return {key: value for key, value in attributes.items() if key != name}


@built
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"block": 4}, "lct.Attn: block is 4, not 0, 1, 8 or 16"),
        ({"block": 32}, "lct.Attn: block is 32, not 0, 1, 8 or 16"),
        ({"block": -1}, "lct.Attn: block is -1, not 0, 1, 8 or 16"),
        ({"groups": 0}, "lct.Attn: groups is 0, not positive"),
        ({"groups": -6}, "lct.Attn: groups is -6, not positive"),
        ({"groups": 7}, "lct.Attn: 48 channels do not divide into 7 groups"),
        ({"groups": 96}, "lct.Attn: 48 channels do not divide into 96 groups"),
        ({"epsilon": 0.0}, "lct.Attn: epsilon is 0, not positive and finite"),
        ({"epsilon": float("nan")}, "lct.Attn: epsilon is nan, not positive and finite"),
        ({"epsilon": float("inf")}, "lct.Attn: epsilon is inf, not positive and finite"),
    ],
)
def test_illegal_attributes_are_named(changed: dict[str, float], message: str) -> None:
    case = Case()
    assert message in refused("Attn", random_floats(case), attributes_of("Attn", case) | changed)


@built
@pytest.mark.parametrize("name", ["block", "groups", "epsilon"])
def test_a_missing_attribute_is_named(name: str) -> None:
    case = Case()
    attributes = _without(attributes_of("AttnQ", case), name)
    assert f"lct.AttnQ: needs the attribute {name}" in refused("AttnQ", random_bytes(case), attributes)


@built
@pytest.mark.parametrize("block", [8, 16])
def test_channels_that_do_not_fill_blocks_are_refused(block: int) -> None:
    case = Case(c=36, block=block)
    message = refused("Attn", random_floats(case), attributes_of("Attn", case))
    assert f"lct.Attn: 36 channels do not divide into blocks of {block}" in message


def _ones(*shape: int) -> Floats:
    return np.ones(shape, np.float32)


@built
@pytest.mark.parametrize(
    ("op", "changed", "message"),
    [
        ("Attn", {"X": _ones(2, 48, 35)}, "lct.Attn: X has 3 dimensions, not 4"),
        ("Attn", {"X": _ones(2, 48, 5, 7, 1)}, "lct.Attn: X has 5 dimensions, not 4"),
        ("Attn", {"identity": _ones(2, 48, 7, 5)}, "lct.Attn: identity has another shape than X"),
        ("Attn", {"identity": _ones(1, 48, 1, 1)}, "lct.Attn: identity has another shape than X"),
        ("Attn", {"identity": _ones(2, 48)}, "lct.Attn: identity has another shape than X"),
        ("Attn", {"w": _ones(47)}, "lct.Attn: w and b must hold one value for each of 48 channels"),
        ("Attn", {"b": _ones(1, 48)}, "lct.Attn: w and b must hold one value for each of 48 channels"),
        ("AttnQ", {"scales": _ones(2)}, "lct.AttnQ: scales and zero_points hold three values each"),
        (
            "AttnQ",
            {"zero_points": np.zeros(1, np.uint8)},
            "lct.AttnQ: scales and zero_points hold three values",
        ),
        ("AttnQ", {"scales": _ones(3) * 0}, "lct.AttnQ: scales and what they are of Y's must be"),
        (
            "AttnQ",
            {"scales": _ones(3) * np.float32(np.nan)},
            "lct.AttnQ: scales and what they are of Y's must be",
        ),
        (
            "AttnQ",
            {"scales": _ones(3) * np.float32(np.inf)},
            "lct.AttnQ: scales and what they are of Y's must be",
        ),
        (
            "AttnQ",
            {"scales": np.array([1e30, 1, 1e-30], np.float32)},
            "lct.AttnQ: scales and what they are of",
        ),
        (
            "AttnQ",
            {"scales": np.array([1, 1e-30, 1e30], np.float32)},
            "lct.AttnQ: scales and what they are of",
        ),
        ("AttnQ", {"scales": -_ones(3)}, "lct.AttnQ: scales and what they are of Y's must be"),
    ],
)
def test_illegal_shapes_and_values_are_named(op: str, changed: dict[str, Array], message: str) -> None:
    case = Case()
    make_inputs, _ = OPS[op]
    assert message in refused(op, {**make_inputs(case), **changed}, attributes_of(op, case))


@built
@pytest.mark.parametrize("shape", [(48,), (2, 47), (1, 48), (2, 48, 1), (2, 48, 5, 7), (2, 48, 1, 1, 1)])
def test_a_gate_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    x, identity, _, _ = random_floats(Case()).values()
    message = refused("GateAdd", {"X": x, "identity": identity, "gate": _ones(*shape)}, {"block": NCHW})
    assert (
        "lct.GateAdd: the gate must have the shape (N, C) or (N, C, 1, 1), here N = 2 and C = 48" in message
    )


@built
@pytest.mark.parametrize(("op", "dtype"), [("Attn", np.float64), ("Attn", np.uint8), ("AttnQ", np.int8)])
def test_another_type_is_refused(op: str, dtype: type[np.generic]) -> None:
    case = Case()
    make_inputs, _ = OPS[op]
    inputs = make_inputs(case)
    assert "Type" in refused(op, inputs | {"X": inputs["X"].astype(dtype)}, attributes_of(op, case))


def test_the_module_says_whether_the_library_is_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "lct_deploy.kernels.cpu.__main__"
    runpy.run_module(name, run_name="__main__")
    assert (str(cpu.op_library()) in capsys.readouterr().out) == (cpu.op_library() is not None)
    monkeypatch.setattr(cpu, "_LIBRARY", Path("nowhere.so"))
    assert cpu.op_library() is None
    runpy.run_module(name, run_name="__main__")
    assert "not built" in capsys.readouterr().out
