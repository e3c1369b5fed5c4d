"""Equations (2)-(4) in every spelling against numpy in float64."""

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper

from exporters.editing import GraphEditor
from exporters.functions import LINEAR_CONTEXT_TRANSFORM
from exporters.normalization import Spelling, normalized, small_factors
from exporters.sites import Attention

GROUPS = 3
EPSILON = 1e-5


def spelled(width: int, *, spelling: Spelling, affine: bool) -> tuple[ModelProto, Attention]:
    rng = np.random.default_rng(width)
    w, b = rng.normal(size=(2, GROUPS * width)).astype(np.float32)
    attention = Attention(
        layer="attn", op=LINEAR_CONTEXT_TRANSFORM, groups=GROUPS, epsilon=EPSILON, parameters=(w, b)
    )
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", GROUPS * width, 1, 1])
    a = helper.make_tensor_value_info("a", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("Identity", ["z"], ["old"])], "graph", [z], [a])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    editor = GraphEditor(model)
    normalized(
        editor, attention, "z", "a", affine=attention.parameters if affine else None, spelling=spelling
    )
    editor.replace(model.graph.node[0])
    return model, attention


def exact(z: np.ndarray, attention: Attention, *, affine: bool) -> np.ndarray:
    grouped = z.astype(np.float64).reshape(len(z), GROUPS, -1)
    centred = grouped - grouped.mean(axis=2, keepdims=True)
    standard = centred / np.sqrt((centred**2).mean(axis=2, keepdims=True) + EPSILON)
    w, b = attention.parameters if affine else (np.ones(1), np.zeros(1))
    return standard.reshape(len(z), -1) * w + b


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("spelling", ["whole", "apart", "nested"])
@pytest.mark.parametrize("width", [2, 4, 5, 6, 8, 16, 32, 64])
def test_every_spelling_is_the_definition(width: int, spelling: Spelling, affine: bool) -> None:
    model, attention = spelled(width, spelling=spelling, affine=affine)
    rng = np.random.default_rng(0)
    spread = rng.normal(size=(4, GROUPS * width, 1, 1))
    # Contexts of another mean, and groups of hardly any variance or none.
    z = np.concatenate([spread, spread + 3, spread * 1e-3 + 1, np.ones_like(spread)]).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (a,) = session.run(["a"], {"z": z})
    np.testing.assert_allclose(
        np.asarray(a).reshape(len(z), -1), exact(z, attention, affine=affine), rtol=1e-4, atol=3e-4
    )


@pytest.mark.parametrize(
    ("width", "factors"),
    [
        (1, [1]),
        (4, [4]),
        (6, [2, 3]),
        (8, [2, 4]),
        (16, [4, 4]),
        (32, [2, 4, 4]),
        (5, None),
        (14, None),
        (64, None),
    ],
)
def test_a_group_is_divided_into_fours(width: int, factors: list[int] | None) -> None:
    assert small_factors(width) == factors
    operators = {node.op_type for node in spelled(width, spelling="nested", affine=True)[0].graph.node}
    assert ("LayerNormalization" in operators) == (factors is None)
