"""Cutting pieces out of graphs: which values everything flows through, and what a piece computes."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import parser

from exporters.fusions.region import Declined, Part, cuts, nodes_between

# `ones` is made by a node and used by both halves, as exporters write constants; y and z diverge and meet.
GRAPH = """
<ir_version: 10, opset_import: ["": 20]>
g (float[N, 4] x, float[N, 4] other) => (float[N, 4] last)
<int64[1] four = {4}>
{
    ones = ConstantOfShape <value: tensor = float[1] {1.0}> (four)
    shifted = Add (x, ones)
    y = Mul (shifted, shifted)
    z = Neg (shifted)
    met = Add (y, z)
    raised = Add (met, ones)
    last = Mul (raised, other)
}
"""


@pytest.fixture
def values() -> dict[str, ir.Value]:
    model = ir.from_proto(parser.parse_model(GRAPH))
    return dict(ir.convenience.create_value_mapping(model.graph))


def test_cuts_are_the_values_that_all_paths_share(values: dict[str, ir.Value]) -> None:
    found = [value.name for value in cuts(values["x"], values["raised"])]
    assert found == ["x", "shifted", "met", "raised"]


def test_nodes_that_only_make_constants_are_not_between(values: dict[str, ir.Value]) -> None:
    nodes = nodes_between(values["shifted"], values["raised"])
    assert [node.op_type for node in nodes] == ["Mul", "Neg", "Add", "Add"]


@pytest.mark.parametrize(
    ("start", "end", "reason"),
    [
        ("x", "last", "depends on other"),
        ("other", "met", "depends on x"),
        ("met", "ones", "does not depend on met"),
    ],
)
def test_a_piece_that_is_not_made_of_its_start_alone(
    values: dict[str, ir.Value], start: str, end: str, reason: str
) -> None:
    with pytest.raises(Declined, match=reason):
        nodes_between(values[start], values[end])


def test_a_part_computes_in_float64(values: dict[str, ir.Value]) -> None:
    x = np.random.default_rng(0).normal(size=(3, 4)) * 1e-9
    values["x"].shape = ir.Shape(["N", 4])
    expected = (x + 1) ** 2 - (x + 1) + 1
    assert np.abs(Part(values["x"], values["raised"])(x) - expected).max() <= 1e-15
    assert np.abs(Part(values["x"], values["raised"], double=False)(x) - expected).max() > 1e-10


def test_a_part_needs_the_shape_of_its_start(values: dict[str, ir.Value]) -> None:
    with pytest.raises(Declined, match="shape"):
        Part(values["met"], values["raised"])


def test_an_operator_without_reference_is_declined() -> None:
    text = """
    <ir_version: 10, opset_import: ["": 20, "com.example": 1]>
    g (float[N, 4] x) => (float[N, 4] y) { y = com.example.Secret (x) }
    """
    graph = ir.from_proto(parser.parse_model(text)).graph
    with pytest.raises(Declined, match="cannot be evaluated"):
        Part(graph.inputs[0], graph.outputs[0])(np.ones((1, 4)))
