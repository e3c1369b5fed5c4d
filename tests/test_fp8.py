"""fp8 graphs for TensorRT against their fp32 graphs: e4m3fn Q/DQ, the gate in float32."""

from functools import cache

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto

from exporters.bisect import blame
from exporters.graph import export_graph
from exporters.nodes import attention_nodes
from exporters.quantization import numerics
from exporters.quantization.calibration import calibrate
from exporters.quantization.emulation import compute_in_float
from exporters.quantization.histogram import DEFAULT_METHOD, Range
from exporters.quantization.qdq import quantize
from exporters.quantization.rewrite import initializers
from exporters.spelling import spell_out
from lct_deploy.architecture import model_config
from tests.conftest import random_network
from tests.test_quantization import (
    PREPROCESSING,
    SIZE,
    WEIGHTS,
    calibration,
    fp32,
    maker,
    nodes,
    noise,
    run,
    sqnr,
)

E4M3 = ml_dtypes.float8_e4m3fn
LEAST_SQNR = 7  # of random networks, which amplify noise: int8 has 15 dB where fp8 has 8
HALF_STEP = 2.0**-4  # of a value with three bits of mantissa


@cache
def fp8(arch: str) -> ModelProto:
    return quantize(fp32(arch), calibration(arch), "tensorrt", "fp8")


@pytest.mark.parametrize("arch", ["se_resnet18", "lct_resnet20"])
def test_logits_are_near_those_of_float32(arch: str) -> None:
    images = noise(24, seed=1)
    assert sqnr(run(fp32(arch), images), run(compute_in_float(spell_out(fp8(arch))), images)) > LEAST_SQNR


@pytest.mark.parametrize("arch", ["lct_resnet26"])
def test_everything_quantised_is_symmetric_e4m3fn_and_biases_are_float(arch: str) -> None:
    model = fp8(arch)
    onnx.checker.check_model(model, full_check=True)
    values = initializers(model)
    assert nodes(model, "QuantizeLinear")
    for node in [*nodes(model, "QuantizeLinear"), *nodes(model, "DequantizeLinear")]:
        zero_point = values[node.input[2]]
        assert zero_point.dtype == E4M3
        assert not zero_point.astype(np.float32).any()
    stem, *others = nodes(model, "Conv")
    assert maker(model, stem.input[0]).op_type != "DequantizeLinear"
    assert {values[name].dtype for name in stem.input[1:]} == {np.dtype(np.float32)}
    for node in [*others, *nodes(model, "Gemm")]:
        dequantize = maker(model, node.input[1])
        weights = values[dequantize.input[0]]
        assert maker(model, node.input[0]).op_type == dequantize.op_type == "DequantizeLinear"
        assert weights.dtype == E4M3
        peaks = np.abs(weights.astype(np.float32)).reshape(len(weights), -1).max(axis=1)
        assert (peaks == 448).all()
        assert values[dequantize.input[1]].shape == (len(weights),)
        assert values[node.input[2]].dtype == np.float32


@pytest.mark.parametrize("arch", ["lct_resnet26", "se_resnet18"])
def test_the_gate_is_in_float32(arch: str) -> None:
    """Nothing between the pooling and the Sigmoid is in eight bits."""
    model = spell_out(fp8(arch))
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    sigmoids = nodes(model, "Sigmoid")
    assert len(sigmoids) == len(attention_nodes(fp32(arch)))
    for sigmoid in sigmoids:
        reached = [sigmoid]
        while (node := reached.pop()).op_type not in ("AveragePool", "GlobalAveragePool"):
            assert types[node.output[0]] == TensorProto.FLOAT
            assert "QuantizeLinear" not in node.op_type
            reached += [maker(model, name) for name in node.input if name not in initializers(model)]


def test_an_opset_older_than_float8_is_raised() -> None:
    network = random_network(model_config("lct_resnet20", num_classes=10), size=SIZE)
    model = export_graph(network, PREPROCESSING, opset=18, metadata={}).model
    quantized = quantize(model, calibrate(model, [noise(16)], DEFAULT_METHOD, total=1), "tensorrt", "fp8")
    assert {entry.version for entry in quantized.opset_import if entry.domain == ""} == {19}
    images = noise(8, seed=1)
    assert sqnr(run(model, images), run(compute_in_float(quantized), images)) > LEAST_SQNR


def test_the_layer_to_blame_is_found() -> None:
    model = fp32("lct_resnet20")
    weight = next(n for n in nodes(fp8("lct_resnet20"), "Conv") if n.name == "layer2.1.bn1/Conv").input[1]
    broken = ModelProto()
    broken.CopyFrom(fp8("lct_resnet20"))
    scale = next(t for t in broken.graph.initializer if t.name == maker(broken, weight).input[1])
    scale.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(scale) * 2, scale.name))
    found = blame(model, broken, noise(16, seed=1))
    assert (found.precision, found.culprit.node) == ("fp8", "layer2.1.bn1/Conv")


# Numbers


@settings(max_examples=200, deadline=None)
@given(st.floats(-1e4, 1e4, width=32), st.floats(-1e4, 1e4, width=32))
def test_the_ends_of_a_range_are_the_largest_values(a: float, b: float) -> None:
    affine = numerics.activation(Range(min(a, b), max(a, b)), "tensorrt", "fp8")
    assert affine.zero_point.dtype == E4M3
    for value in (0.0, a, b):
        stored = np.float32(np.clip(value / float(affine.scale), -448, 448)).astype(E4M3).astype(np.float32)
        least = 2.0**-10 * float(affine.scale)  # half a subnormal step
        assert abs(float(stored) * float(affine.scale) - value) <= 1.001 * max(HALF_STEP * abs(value), least)


@settings(max_examples=200, deadline=None)
@given(WEIGHTS)
def test_weights_are_within_half_a_step(weights: np.ndarray) -> None:
    zero = np.zeros(len(weights), np.float32)
    stored = numerics.weights(weights, zero, np.array(1.0, np.float32), "tensorrt", "fp8")
    restored = stored.values.astype(np.float32) * stored.scale[:, None]
    least = 2.0**-10 * stored.scale[:, None]
    assert (np.abs(restored - weights) <= 1.001 * np.maximum(HALF_STEP * np.abs(weights), least)).all()
