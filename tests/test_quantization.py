"""int8 graphs of every architecture against their fp32 graphs, and what onnxruntime makes of them."""

from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from PIL import Image

from exporters.gates import read_gates
from exporters.graph import export_graph
from exporters.nodes import attention_nodes, node_module
from exporters.quantization import numerics
from exporters.quantization.calibration import Calibration, calibrate
from exporters.quantization.head import pool_by_operator
from exporters.quantization.histogram import DEFAULT_METHOD, Range
from exporters.quantization.placement import Target
from exporters.quantization.qdq import quantize
from exporters.quantization.rewrite import initializers
from exporters.quantization.stem import cast_first, fold_normalization
from lct_deploy.architecture import model_config
from lct_deploy.checkpoint import load_checkpoint
from lct_deploy.errors import ExportError
from lct_deploy.preprocessing import Preprocessing, preprocess
from lct_deploy.sample import DEMO_CHECKPOINT, load_sample
from tests.conftest import random_network

SIZE = 32
PREPROCESSING = Preprocessing(resize=SIZE, crop=SIZE)
TARGETS: tuple[Target, ...] = ("onnxruntime", "tensorrt")
# Basic and bottleneck blocks, small and large stems, with every attention and with none.
FAMILIES = [
    "resnet18",
    "resnet26",
    "se_resnet18",
    "se_plus_resnet26",
    "lct_resnet18",
    "lct_resnet26",
    "lct_resnet20",
]


def noise(count: int, size: int = SIZE, seed: int = 0) -> np.ndarray:
    """Blocks of colour with noise over them: their activations vary as those of photographs do."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (count, size // 4, size // 4, 3)).repeat(4, axis=1).repeat(4, axis=2)
    return np.clip(blocks + rng.normal(0, 20, blocks.shape), 0, 255).astype(np.uint8)


@cache
def fp32(arch: str) -> ModelProto:
    network = random_network(model_config(arch, num_classes=10), size=SIZE)
    return export_graph(network, PREPROCESSING, metadata={"lct.arch": arch}).model


@cache
def calibration(arch: str) -> Calibration:
    return calibrate(fp32(arch), np.split(noise(32), 8), DEFAULT_METHOD, total=8)


@cache
def int8(arch: str, target: Target) -> ModelProto:
    return quantize(fp32(arch), calibration(arch), target)


def run(model: ModelProto, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"image": images})[0])


# Networks with random weights amplify noise: onnxruntime's own quantiser reaches 14.4 dB on resnet26.
LEAST_SQNR = 13


def sqnr(reference: np.ndarray, values: np.ndarray) -> float:
    """Signal to quantisation noise in dB; six are a bit."""
    return float(10 * np.log10((reference**2).sum() / ((reference - values) ** 2).sum()))


def nodes(model: ModelProto, op: str) -> list[NodeProto]:
    return [node for node in model.graph.node if node.op_type == op]


def maker(model: ModelProto, tensor: str) -> NodeProto:
    return next(node for node in model.graph.node if tensor in node.output)


def optimized(model: ModelProto, directory: Path) -> ModelProto:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(directory / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(directory / "optimized.onnx")


def census(model: ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


# Answers


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("arch", FAMILIES)
def test_logits_are_near_those_of_float32(arch: str, target: Target) -> None:
    images = noise(24, seed=1)
    reference = run(fp32(arch), images)
    assert sqnr(reference, run(int8(arch, target), images)) > LEAST_SQNR


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("batch", [1, 3])
def test_any_batch_and_extreme_images(target: Target, batch: int) -> None:
    for images in (
        np.zeros((batch, SIZE, SIZE, 3), np.uint8),
        np.full((batch, SIZE, SIZE, 3), 255, np.uint8),
    ):
        reference = run(fp32("lct_resnet26"), images)
        logits = run(int8("lct_resnet26", target), images)
        assert logits.shape == (batch, 10)
        assert sqnr(reference, logits) > 6  # brighter and darker than all that it was calibrated on


@pytest.mark.parametrize("target", TARGETS)
def test_the_shipped_checkpoint_agrees_with_float32(target: Target) -> None:
    loaded, sample = load_checkpoint(DEMO_CHECKPOINT), load_sample()
    assert loaded.metadata is not None
    preprocessing = loaded.metadata.preprocessing
    assert preprocessing is not None
    model = export_graph(loaded.model, preprocessing, metadata={}).model
    images = np.stack([preprocess(Image.fromarray(image), preprocessing) for image in sample.images])
    seen, unseen = images[:128], images[128:]
    quantized = quantize(model, calibrate(model, np.split(seen, 32), DEFAULT_METHOD, total=32), target)
    reference, logits = run(model, unseen), run(quantized, unseen)
    assert (reference.argmax(axis=1) == logits.argmax(axis=1)).mean() >= 0.98
    right = [(x.argmax(axis=1) == sample.labels[128:]).mean() for x in (reference, logits)]
    assert right[0] - right[1] <= 0.005
    assert sqnr(reference, logits) > 30


class _Reader(CalibrationDataReader):
    def __init__(self, batches: list[np.ndarray]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        batch = next(self.batches, None)
        return None if batch is None else {"image": batch}


def test_the_noise_is_not_above_that_of_onnxruntimes_own_quantizer(tmp_path: Path) -> None:
    model, batches, images = fp32("resnet18"), np.split(noise(32), 8), noise(24, seed=1)
    onnx.save(model, tmp_path / "fp32.onnx")
    quantize_static(
        tmp_path / "fp32.onnx",
        tmp_path / "int8.onnx",
        _Reader(batches),
        per_channel=True,
        reduce_range=True,  # as ours: no sums that saturate where there is no VNNI
        activation_type=QuantType.QUInt8,
        op_types_to_quantize=["Conv", "Add", "MaxPool", "Gemm"],
    )
    ours = quantize(model, calibrate(model, batches, "min-max", total=8), "onnxruntime")
    reference = run(model, images)
    theirs = sqnr(reference, run(onnx.load(tmp_path / "int8.onnx"), images))
    assert sqnr(reference, run(ours, images)) > theirs - 0.5


@pytest.mark.parametrize("target", TARGETS)
def test_gates_can_be_read_and_are_near_those_of_float32(target: Target, tmp_path: Path) -> None:
    onnx.save(fp32("lct_resnet26"), tmp_path / "fp32.onnx")
    onnx.save(int8("lct_resnet26", target), tmp_path / "int8.onnx")
    images = noise(8, seed=1)
    reference = read_gates(tmp_path / "fp32.onnx", images, batch=4)
    gates = read_gates(tmp_path / "int8.onnx", images, batch=4)
    assert list(reference) == list(gates)
    for layer, values in gates.items():
        assert np.abs(values - reference[layer]).mean() < 0.05, layer


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("opset", [18, 23])
def test_the_oldest_and_the_newest_opset(opset: int, target: Target) -> None:
    network = random_network(model_config("lct_resnet20", num_classes=10), size=SIZE)
    model = export_graph(network, PREPROCESSING, opset=opset, metadata={}).model
    quantized = quantize(model, calibrate(model, [noise(16)], DEFAULT_METHOD, total=1), target)
    images = noise(8, seed=1)
    assert sqnr(run(model, images), run(quantized, images)) > LEAST_SQNR


@pytest.mark.parametrize("target", TARGETS)
def test_an_attention_that_is_not_fused_stays_in_float(target: Target) -> None:
    network = random_network(model_config("lct_resnet20", num_classes=10, normalize=False), size=SIZE)
    model = export_graph(network, PREPROCESSING, metadata={}).model
    quantized = quantize(model, calibrate(model, [noise(16)], DEFAULT_METHOD, total=1), target)
    for sigmoid in nodes(quantized, "Sigmoid"):
        assert maker(quantized, sigmoid.input[0]).op_type != "DequantizeLinear"
    images = noise(8, seed=1)
    assert sqnr(run(model, images), run(quantized, images)) > LEAST_SQNR


# Structure


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("arch", FAMILIES)
def test_convolutions_additions_and_classifier_read_eight_bits(arch: str, target: Target) -> None:
    model = int8(arch, target)
    for node in [*nodes(model, "Conv"), *nodes(model, "Gemm"), *attention_nodes(model)]:
        assert maker(model, node.input[0]).op_type == "DequantizeLinear", node.name
    for node in [*nodes(model, "Conv"), *nodes(model, "Gemm")]:
        dequantize = maker(model, node.input[1])
        values = initializers(model)[dequantize.input[0]]
        assert dequantize.op_type == "DequantizeLinear"
        assert values.dtype == np.int8
        peaks = np.abs(values.reshape(len(values), -1)).max(axis=1)
        # For onnxruntime two neighbours share what int16 holds of their products.
        assert peaks.min() >= (127 if target == "tensorrt" else 63)
        assert not initializers(model)[dequantize.input[2]].any()
    for node in nodes(model, "Add"):
        makers = {maker(model, name).op_type for name in node.input}
        branch = {attention.op_type for attention in attention_nodes(model)} or {"Conv"}
        assert makers == ({"DequantizeLinear"} if target == "onnxruntime" else {"DequantizeLinear", *branch})
    for node in nodes(model, "QuantizeLinear"):
        assert maker(model, node.input[0]).op_type != "DequantizeLinear"


def test_for_onnxruntime_activations_are_unsigned_and_biases_int32() -> None:
    model = int8("lct_resnet26", "onnxruntime")
    values = initializers(model)
    for node in nodes(model, "QuantizeLinear"):
        assert values[node.input[2]].dtype == np.uint8
        if maker(model, node.input[0]).op_type == "Relu":
            assert values[node.input[2]] == 0  # else onnxruntime could not drop the ReLU
    for node in nodes(model, "Conv"):
        bias, weight = maker(model, node.input[2]), maker(model, node.input[1])
        data = maker(model, node.input[0])
        assert values[bias.input[0]].dtype == np.int32
        np.testing.assert_allclose(
            values[bias.input[1]], values[weight.input[1]] * values[data.input[1]], rtol=1e-6
        )


def test_for_tensorrt_all_is_symmetric_and_biases_are_float() -> None:
    model = int8("lct_resnet26", "tensorrt")
    values = initializers(model)
    for node in [*nodes(model, "QuantizeLinear"), *nodes(model, "DequantizeLinear")]:
        zero_point = values[node.input[2]]
        assert zero_point.dtype == np.int8
        assert not zero_point.any()
    for node in [*nodes(model, "Conv"), *nodes(model, "Gemm")]:
        assert values[node.input[2]].dtype == np.float32
    first, second = model.graph.node[:2]
    assert (first.op_type, first.input[0], second.op_type) == ("Cast", "image", "Transpose")


@pytest.mark.parametrize("target", TARGETS)
def test_names_attributes_interface_and_metadata_stay(target: Target) -> None:
    before, after = fp32("lct_resnet26"), int8("lct_resnet26", target)
    names = {node.name: node for node in after.graph.node}
    assert len(names) == len(after.graph.node)
    respelled = {"input/Cast", "input/Div", "input/Sub", "input/Div_2"}
    if target == "onnxruntime":
        respelled.add("avgpool/ReduceMean")
    for node in before.graph.node:
        if node.name not in respelled:
            assert list(names[node.name].attribute) == list(node.attribute)
            assert names[node.name].op_type == node.op_type
            assert node_module(names[node.name]) == node_module(node)
    assert {"layer1.0.attn/LinearContextTransform", "layer1.0/Add", "layer1.0.relu/Relu_3"} <= set(names)
    assert (list(after.graph.input), list(after.graph.output)) == (
        list(before.graph.input),
        list(before.graph.output),
    )
    metadata = {p.key: p.value for p in after.metadata_props}
    assert metadata == {"lct.arch": "lct_resnet26", "lct.precision": "int8"}


def test_the_result_is_the_same_every_time_and_the_source_is_left_alone() -> None:
    model = fp32("lct_resnet26")
    before = model.SerializeToString(deterministic=True)
    for target in TARGETS:
        first = quantize(model, calibration("lct_resnet26"), target).SerializeToString(deterministic=True)
        second = quantize(model, calibration("lct_resnet26"), target).SerializeToString(deterministic=True)
        assert first == second
    assert model.SerializeToString(deterministic=True) == before


def test_no_float_weight_is_left_over() -> None:
    model = int8("resnet26", "onnxruntime")
    floats = [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT]
    assert all("scale" in tensor.name for tensor in floats)
    assert model.ByteSize() < 0.3 * fp32("resnet26").ByteSize()


def test_max_pooling_keeps_its_inputs_scale() -> None:
    model = int8("resnet26", "onnxruntime")
    pool = nodes(model, "MaxPool")[0]
    after = next(node for node in nodes(model, "QuantizeLinear") if node.input[0] == pool.output[0])
    before, values = maker(model, pool.input[0]), initializers(model)
    assert values[before.input[1]] == values[after.input[1]]
    assert values[before.input[2]] == values[after.input[2]]


def test_a_missing_range_is_named() -> None:
    known = calibration("lct_resnet26")
    known = replace(known, ranges={name: known.ranges[name] for name in known.ranges if name != "relu_3"})
    for target in TARGETS:
        with pytest.raises(ExportError, match="no range was calibrated for 1 tensors: relu_3"):
            quantize(fp32("lct_resnet26"), known, target)


# What onnxruntime makes of it


@pytest.mark.parametrize(("arch", "blocks", "convolutions"), [("resnet18", 8, 20), ("resnet26", 8, 29)])
def test_onnxruntime_runs_a_plain_network_in_integers(
    arch: str, blocks: int, convolutions: int, tmp_path: Path
) -> None:
    assert census(optimized(int8(arch, "onnxruntime"), tmp_path)) == {
        # the image's fourth channel
        "Shape": 1,
        "Concat": 2,
        "ConstantOfShape": 1,
        "QLinearConv": convolutions,
        "QLinearAdd": blocks,
        "NhwcMaxPool": 1,
        "QLinearGlobalAveragePool": 1,
        "Transpose": 1,  # of one pixel
        "Flatten": 1,
        "QGemm": 1,
    }


@pytest.mark.parametrize("arch", ["lct_resnet26", "se_resnet18", "se_plus_resnet26"])
def test_onnxruntime_scales_and_adds_in_integers(arch: str, tmp_path: Path) -> None:
    model = int8(arch, "onnxruntime")
    blocks = len(attention_nodes(model))
    found = census(optimized(model, tmp_path))
    assert found["QLinearConv"] == len(nodes(model, "Conv"))
    assert (found["QLinearMul"], found["QLinearAdd"]) == (blocks, blocks)
    assert (found["Conv"], found["QGemm"]) == (0, 1)
    # A block's: X for the context, the gate.
    assert (found["DequantizeLinear"], found["QuantizeLinear"]) == (blocks, blocks)


def test_the_plain_twin_of_an_lct_network_takes_the_ranges_measured_with_its_attention(
    tmp_path: Path,
) -> None:
    twin = ModelProto()
    twin.CopyFrom(fp32("lct_resnet26"))
    for attention in attention_nodes(twin):
        addition = next(node for node in nodes(twin, "Add") if attention.output[0] in node.input)
        addition.input[list(addition.input).index(attention.output[0])] = attention.input[0]
        twin.graph.node.remove(attention)
    del twin.functions[:]
    quantized = quantize(twin, calibration("lct_resnet26"), "onnxruntime")
    found = optimized(quantized, tmp_path)
    assert census(found)["QLinearAdd"] == 8
    additions = {node.name: node for node in found.graph.node if node.op_type == "QLinearAdd"}
    scales = {name: values for name, values in initializers(found).items() if "scale" in name}
    measured = initializers(int8("lct_resnet26", "onnxruntime"))
    assert "layer1.0/Add" in additions
    x_scale = additions["layer1.0/Add"].input[1]
    x = attention_nodes(fp32("lct_resnet26"))[0].input[0]
    assert scales[x_scale] == measured[f"{x}_scale"]


# The image


@settings(max_examples=4, deadline=None)
@given(
    st.sampled_from(["resnet18", "resnet20"]),
    st.tuples(*[st.floats(0, 1)] * 3),
    st.tuples(*[st.floats(0.05, 1)] * 3),
    st.integers(0, 100),
)
def test_normalisation_in_the_weights_is_the_same_function(
    arch: str, mean: tuple[float, float, float], std: tuple[float, float, float], seed: int
) -> None:
    network = random_network(model_config(arch, num_classes=5), size=SIZE)
    preprocessing = Preprocessing(resize=SIZE, crop=SIZE, mean=mean, std=std)
    model = export_graph(network, preprocessing, metadata={}).model
    images = noise(2, seed=seed)
    reference = run(model, images)
    tolerance = 1e-4 * np.abs(reference).max()
    np.testing.assert_allclose(run(fold_normalization(model), images), reference, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(run(cast_first(model), images), reference)


def test_a_graph_that_begins_otherwise_keeps_its_beginning() -> None:
    old = ModelProto()
    old.CopyFrom(fp32("resnet18"))
    old.opset_import[0].version = 14
    assert fold_normalization(old) is old
    other = ModelProto()
    other.CopyFrom(fp32("resnet18"))
    other.graph.node[2].op_type = "Mul"
    assert fold_normalization(other) is other
    assert cast_first(other) is other


# The last mean


@pytest.mark.parametrize("arch", ["resnet18", "se_resnet18", "lct_resnet26"])
def test_the_last_mean_becomes_one_operator_of_the_same_function(arch: str) -> None:
    model = fp32(arch)
    pooled = pool_by_operator(model)
    assert census(pooled) - census(model) == {"GlobalAveragePool": 1, "Flatten": 1}
    assert census(model) - census(pooled) == {"ReduceMean": 1}
    images = noise(2, seed=3)
    reference = run(model, images)
    tolerance = 1e-6 * np.abs(reference).max()
    np.testing.assert_allclose(run(pooled, images), reference, rtol=0, atol=tolerance)


def test_a_graph_that_ends_otherwise_keeps_its_end() -> None:
    pooled = pool_by_operator(fp32("resnet18"))
    assert pool_by_operator(pooled) is pooled
    without = ModelProto()
    without.CopyFrom(fp32("resnet18"))
    nodes(without, "Gemm")[0].op_type = "MatMul"
    assert pool_by_operator(without) is without
    rows = ModelProto()
    rows.CopyFrom(fp32("resnet18"))
    axes = next(t for t in rows.graph.initializer if t.name == nodes(rows, "ReduceMean")[0].input[1])
    axes.CopyFrom(numpy_helper.from_array(np.array([3]), axes.name))
    assert pool_by_operator(rows) is rows


def test_a_last_mean_of_an_old_opset_becomes_that_operator_too() -> None:
    """Its axes are an attribute up to opset 17, and some keep the dimensions for a Flatten."""
    model = ModelProto()
    model.CopyFrom(fp32("resnet18"))
    mean = nodes(model, "ReduceMean")[0]
    flatten = helper.make_node("Flatten", ["kept"], [mean.output[0]], name="flatten")
    old = helper.make_node("ReduceMean", [mean.input[0]], ["kept"], name="mean", axes=[-1, -2], keepdims=1)
    at = list(model.graph.node).index(mean)
    model.graph.node.remove(mean)
    model.graph.node.insert(at, old)
    model.graph.node.insert(at + 1, flatten)
    model.opset_import[0].version = 17
    pooled = pool_by_operator(model)
    assert [node.op_type for node in pooled.graph.node][at : at + 3] == [
        "GlobalAveragePool",
        "Flatten",
        "Gemm",
    ]
    images = noise(2, seed=3)
    np.testing.assert_allclose(run(pooled, images), run(fp32("resnet18"), images), rtol=1e-4)


# Numbers


def test_the_gate_has_steps_of_a_255th() -> None:
    for function in int8("lct_resnet26", "onnxruntime").functions:
        constants = {n.output[0]: n.attribute[0].t for n in function.node if n.op_type == "Constant"}
        quantize_gate = next(n for n in function.node if n.op_type == "QuantizeLinear")
        scale, zero_point = (numpy_helper.to_array(constants[name]) for name in quantize_gate.input[1:])
        assert (scale, zero_point, zero_point.dtype) == (np.float32(1 / 255), 0, np.uint8)


@settings(max_examples=200, deadline=None)
@given(st.floats(-1e4, 1e4, width=32), st.floats(-1e4, 1e4, width=32), st.sampled_from(TARGETS))
def test_a_range_and_zero_are_representable(a: float, b: float, target: Target) -> None:
    affine = numerics.activation(Range(min(a, b), max(a, b)), target)
    limits = np.iinfo(affine.zero_point.dtype)
    assert affine.scale > 0
    for value in (0.0, a, b):
        quantized = np.clip(
            round(value / float(affine.scale)) + int(affine.zero_point), limits.min, limits.max
        )
        restored = (quantized - int(affine.zero_point)) * float(affine.scale)
        assert abs(restored - value) <= float(affine.scale) * (0 if value == 0 else 1.001)
    assert target == "onnxruntime" or quantized >= -127


WEIGHTS = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 4), st.integers(1, 6)), elements=st.floats(-100, 100, width=32)
)


@settings(max_examples=200, deadline=None)
@given(WEIGHTS, st.floats(-1e6, 1e6, width=32), st.floats(2**-20, 10, width=32), st.sampled_from(TARGETS))
def test_weights_and_biases_are_within_half_a_step(
    weights: np.ndarray, bias: float, scale: float, target: Target
) -> None:
    biases, input_scale = np.full(len(weights), bias, np.float32), np.array(scale, np.float32)
    integer = numerics.weights(weights, biases, input_scale, target)
    restored = integer.values * integer.scale[:, None]
    assert (np.abs(restored - weights) <= 0.5001 * integer.scale[:, None]).all()
    quantized = numerics.integer_bias(biases, integer.scale, input_scale)
    step = integer.scale.astype(np.float64) * scale
    assert (np.abs(quantized * step - biases) <= 0.501 * step + 1e-6 * abs(bias)).all()


@settings(max_examples=200, deadline=None)
@given(WEIGHTS, st.integers(0, 2**32 - 1), st.sampled_from(TARGETS))
def test_rounded_weights_keep_the_mean_of_what_they_give(
    weights: np.ndarray, seed: int, target: Target
) -> None:
    inputs = np.random.default_rng(seed).uniform(0, 3, (weights.shape[1], 50))
    small = numerics.weights(weights, np.zeros(len(weights), np.float32), np.array(1, np.float32), target)
    lost = numerics.lost_mean(weights, small, inputs.mean(axis=1))
    kept = (small.dequantized.astype(np.float64) @ inputs).mean(axis=1) + lost
    np.testing.assert_allclose(kept, (weights.astype(np.float64) @ inputs).mean(axis=1), atol=1e-3)


@pytest.mark.parametrize("target", [*TARGETS, "openvino"])
@pytest.mark.parametrize("arch", ["lct_resnet26", "se_resnet18"])
def test_biases_bring_logits_nearer_to_those_of_float32(arch: str, target: Target) -> None:
    model, images = fp32(arch), noise(32, seed=1)
    reference, unaware = run(model, images), replace(calibration(arch), means={})
    without, with_means = (quantize(model, known, target) for known in (unaware, calibration(arch)))
    assert sqnr(reference, run(with_means, images)) > sqnr(reference, run(without, images))


@settings(max_examples=100, deadline=None)
@given(WEIGHTS)
def test_two_products_of_neighbours_fit_in_sixteen_bits(weights: np.ndarray) -> None:
    biases = np.zeros(len(weights), np.float32)
    values = numerics.weights(weights, biases, np.array(1, np.float32), "onnxruntime").values
    pairs = np.pad(values.astype(int), ((0, 0), (0, values.shape[1] % 2))).reshape(len(values), -1, 2)
    for sign in (1, -1):
        assert 255 * np.maximum(sign * pairs, 0).sum(axis=2).max() <= np.iinfo(np.int16).max


@pytest.mark.parametrize("arch", ["lct_resnet18", "lct_resnet26", "lct_resnet20"])
def test_processors_without_vnni_give_the_same_answer(arch: str) -> None:
    """onnxruntime can be asked for kernels that never saturate: where they differ, its usual ones do."""
    integer = int8(arch, "onnxruntime")
    images = np.concatenate([noise(2), np.full_like(noise(1), 255)])
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    exact = onnxruntime.InferenceSession(
        integer.SerializeToString(), options, providers=["CPUExecutionProvider"]
    ).run(["logits"], {"image": images})[0]
    np.testing.assert_array_equal(run(integer, images), exact)


def test_a_channel_without_weights_keeps_its_bias() -> None:
    weights = np.zeros((2, 3, 1, 1), np.float32)
    weights[1] = 1
    bias, input_scale = np.array([5.0, 5.0], np.float32), np.array(0.01, np.float32)
    integer = numerics.weights(weights, bias, input_scale, "onnxruntime")
    quantized = numerics.integer_bias(bias, integer.scale, input_scale)
    np.testing.assert_allclose(quantized * integer.scale * 0.01, bias, rtol=1e-2)


def test_a_network_with_dead_channels_still_agrees() -> None:
    """BatchNorm with γ = 0 folds to weights of zero: scales of zero would give NaN."""
    dead = ModelProto()
    dead.CopyFrom(fp32("lct_resnet18"))
    for tensor in dead.graph.initializer:
        if tensor.name.endswith("conv1.weight"):
            values = numpy_helper.to_array(tensor).copy()
            values[::3] = 0
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    measured = calibrate(dead, [noise(16)], DEFAULT_METHOD, total=1)
    images = noise(8, seed=1)
    reference = run(dead, images)
    for target in TARGETS:
        assert sqnr(reference, run(quantize(dead, measured, target), images)) > LEAST_SQNR


def test_a_tensor_that_is_always_zero_has_a_valid_scale() -> None:
    for target in TARGETS:
        affine = numerics.activation(Range(0.0, 0.0), target)
        assert affine.scale > 0
        assert affine.zero_point == 0
