"""fp16 and bf16 graphs: what is in half, what stays in float32, and how near the answers are."""

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from PIL import Image

from exporters.gates import read_gates
from exporters.graph import export_graph
from exporters.half import Half, emulate, to_half
from exporters.nodes import attention_nodes
from lct_deploy.architecture import model_config
from lct_deploy.checkpoint import load_checkpoint
from lct_deploy.errors import ExportError
from lct_deploy.models import ResNet
from lct_deploy.models.classifier import ImageClassifier
from lct_deploy.preprocessing import Preprocessing, preprocess
from lct_deploy.sample import DEMO_CHECKPOINT, load_sample
from tests.conftest import random_network

SIZE = 32
PREPROCESSING = Preprocessing(resize=SIZE, crop=SIZE)
HALVES: tuple[Half, ...] = ("fp16", "bf16")
TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
EPSILON = {"fp16": 2**-11, "bf16": 2**-8}  # half a unit in the last place, relative
FAMILIES = ["resnet18", "se_resnet26", "se_plus_resnet18", "lct_resnet26", "lct_resnet20"]


@cache
def network(arch: str) -> ResNet:
    return random_network(model_config(arch, num_classes=10), size=SIZE)


@cache
def fp32(arch: str) -> ModelProto:
    return export_graph(network(arch), PREPROCESSING, metadata={"lct.arch": arch}).model


@cache
def half(arch: str, precision: Half) -> ModelProto:
    return to_half(fp32(arch), precision)


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def run(model: ModelProto, images: np.ndarray, output: str = "logits") -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run([output], {"image": images})[0])


def types(model: ModelProto) -> dict[str, int]:
    graph = model.graph
    values = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    return values | {tensor.name: tensor.data_type for tensor in graph.initializer}


def relative_error(reference: np.ndarray, values: np.ndarray) -> float:
    return float(np.linalg.norm(values - reference) / np.linalg.norm(reference))


# Answers


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("arch", FAMILIES)
def test_emulated_logits_are_near_those_of_float32(arch: str, precision: Half) -> None:
    images = noise(8)
    reference = run(fp32(arch), images)
    logits = run(emulate(half(arch, precision)), images)
    assert logits.dtype == np.float32
    assert 0 < relative_error(reference, logits) < 24 * EPSILON[precision]


@pytest.mark.parametrize("arch", FAMILIES)
def test_onnxruntime_runs_the_fp16_graph(arch: str) -> None:
    """With fewer roundings than a GPU: it has no kernels for the type here and computes in float32."""
    images = noise(8)
    reference = run(fp32(arch), images)
    assert relative_error(reference, run(half(arch, "fp16"), images)) < 24 * EPSILON["fp16"]


def test_the_emulation_is_as_far_off_as_pytorch_in_bfloat16() -> None:
    images = noise(16)
    reference = run(fp32("lct_resnet26"), images)
    ours = relative_error(reference, run(emulate(half("lct_resnet26", "bf16")), images))
    classifier = ImageClassifier(network("lct_resnet26"), PREPROCESSING).eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        logits = classifier(torch.tensor(images)).float().numpy()
    assert 0.5 < ours / relative_error(reference, logits) < 2


@pytest.mark.parametrize("precision", HALVES)
def test_the_shipped_checkpoint_agrees_with_float32(precision: Half) -> None:
    loaded, sample = load_checkpoint(DEMO_CHECKPOINT), load_sample()
    assert loaded.metadata is not None
    preprocessing = loaded.metadata.preprocessing
    assert preprocessing is not None
    model = export_graph(loaded.model, preprocessing, metadata={}).model
    images = np.stack([preprocess(Image.fromarray(image), preprocessing) for image in sample.images])
    reference, logits = run(model, images), run(emulate(to_half(model, precision)), images)
    assert (reference.argmax(axis=1) == logits.argmax(axis=1)).mean() >= 0.995


@pytest.mark.parametrize("precision", HALVES)
def test_gates_are_float32_and_near(precision: Half, tmp_path: Path) -> None:
    onnx.save(fp32("lct_resnet26"), tmp_path / "fp32.onnx")
    onnx.save(emulate(half("lct_resnet26", precision)), tmp_path / "half.onnx")
    reference = read_gates(tmp_path / "fp32.onnx", noise(4), batch=4)
    for layer, values in read_gates(tmp_path / "half.onnx", noise(4), batch=4).items():
        assert values.dtype == np.float32
        assert np.abs(values - reference[layer]).mean() < 4 * EPSILON[precision], layer


@pytest.mark.parametrize("opset", [18, 23])
@pytest.mark.parametrize("precision", HALVES)
def test_the_oldest_and_the_newest_opset(opset: int, precision: Half) -> None:
    model = export_graph(network("lct_resnet20"), PREPROCESSING, opset=opset, metadata={}).model
    converted = to_half(model, precision)
    least = 22 if precision == "bf16" else 18
    assert {e.version for e in converted.opset_import if e.domain == ""} == {max(opset, least)}
    assert {e.version for f in converted.functions for e in f.opset_import} == {max(opset, least)}
    images = noise(2)
    assert relative_error(run(model, images), run(emulate(converted), images)) < 24 * EPSILON[precision]


# Structure


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("arch", FAMILIES)
def test_what_is_in_half_and_what_is_not(arch: str, precision: Half) -> None:
    model = half(arch, precision)
    of, expected = types(model), TYPES[precision]
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm", "Relu", "Add", "MaxPool"):
            assert {of[name] for name in (*node.input, *node.output)} == {expected}, node.name
        if node.op_type in ("Div", "Sub", "ReduceMean"):
            assert of[node.output[0]] == TensorProto.FLOAT, node.name
    for node in attention_nodes(model):
        assert {of[node.input[0]], of[node.output[0]]} == {expected}
        assert {of[name] for name in node.input[1:]} == {TensorProto.FLOAT}
    assert (of["image"], of["logits"]) == (TensorProto.UINT8, TensorProto.FLOAT)
    metadata = {p.key: p.value for p in model.metadata_props}
    assert metadata == {"lct.arch": arch, "lct.precision": precision}


@pytest.mark.parametrize("precision", HALVES)
def test_an_attention_that_is_not_fused_stays_in_float32(precision: Half) -> None:
    unfused = random_network(model_config("lct_resnet20", num_classes=10, normalize=False), size=SIZE)
    model = to_half(export_graph(unfused, PREPROCESSING, metadata={}).model, precision)
    of = types(model)
    sigmoids = [node for node in model.graph.node if node.op_type == "Sigmoid"]
    assert len(sigmoids) == 9
    assert {of[node.input[0]] for node in sigmoids} == {TensorProto.FLOAT}
    assert {of[n.output[0]] for n in model.graph.node if n.op_type == "Mul"} == {TensorProto.FLOAT}
    assert np.isfinite(run(emulate(model), noise(2))).all()


def test_every_node_has_a_name_of_its_own() -> None:
    names = [node.name for node in half("lct_resnet26", "fp16").graph.node]
    assert len(set(names)) == len(names)
    assert {"layer1.0.attn/LinearContextTransform", "layer1.0/Add", "fc/Gemm"} <= set(names)


def test_the_image_is_cast_before_it_is_transposed() -> None:
    """TensorRT transposes no uint8."""
    first, second = half("lct_resnet26", "fp16").graph.node[:2]
    assert (first.op_type, first.input[0], second.op_type) == ("Cast", "image", "Transpose")


@pytest.mark.parametrize("precision", HALVES)
def test_the_source_is_left_alone(precision: Half) -> None:
    model = fp32("lct_resnet26")
    before = model.SerializeToString(deterministic=True)
    converted = to_half(model, precision)
    frozen = converted.SerializeToString(deterministic=True)
    emulate(converted)
    assert model.SerializeToString(deterministic=True) == before
    assert converted.SerializeToString(deterministic=True) == frozen


# Rounding


@pytest.mark.parametrize("precision", HALVES)
def test_emulated_tensors_and_weights_are_values_of_the_type(precision: Half) -> None:
    dtype = helper.tensor_dtype_to_np_dtype(TYPES[precision])
    source = half("lct_resnet26", precision)
    model = emulate(source)
    for tensor in source.graph.initializer:
        if tensor.data_type == TYPES[precision]:
            values = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == tensor.name))
            np.testing.assert_array_equal(values, values.astype(dtype).astype(np.float32))
    for name in ("getitem_9", "_symbolic", "relu_3"):
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
        values = run(model, noise(2), name)
        np.testing.assert_array_equal(values, values.astype(dtype).astype(np.float32))
        assert np.unique(values).size > 100


@pytest.mark.parametrize("precision", HALVES)
def test_the_gate_is_rounded_before_it_scales(precision: Half, tmp_path: Path) -> None:
    dtype = helper.tensor_dtype_to_np_dtype(TYPES[precision])
    model, images = emulate(half("lct_resnet26", precision)), noise(2)
    onnx.save(model, tmp_path / "model.onnx")
    gate = read_gates(tmp_path / "model.onnx", images, batch=2)["layer1.0.attn"].astype(dtype)
    attention = attention_nodes(model)[0]
    for name in (attention.input[0], attention.output[0]):
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    x, y = (run(model, images, name) for name in (attention.input[0], attention.output[0]))
    # Of two such values the product is exact in float32.
    np.testing.assert_allclose(y, x * gate.astype(np.float32)[:, :, None, None], rtol=1e-6)


@pytest.mark.parametrize("value", [7e4, -1e6])
def test_a_weight_out_of_range_names_its_layer(value: float) -> None:
    model = with_weight("network.layer3.0.conv2.weight", value)
    with pytest.raises(ExportError, match=r"layer3\.0\.bn2: a weight of \S+ is out of fp16's range\nbf16"):
        to_half(model, "fp16")
    to_half(model, "bf16")


def test_a_bias_out_of_range_names_its_layer() -> None:
    with pytest.raises(ExportError, match=r"fc: a weight of 1e\+05 is out of fp16's range"):
        to_half(with_weight("network.fc.bias", 1e5), "fp16")


@pytest.mark.parametrize("value", [3.4e38, np.nan])
def test_bf16_has_its_limits_too(value: float) -> None:
    with pytest.raises(ExportError, match=r"fc: a weight of \S+ is out of bf16's range"):
        to_half(with_weight("network.fc.weight", value), "bf16")


def test_the_attentions_parameters_may_be_of_any_size() -> None:
    to_half(with_weight("network.layer1.0.attn.inputs.1", 1e6), "fp16")


def with_weight(name: str, value: float) -> ModelProto:
    model = ModelProto()
    model.CopyFrom(fp32("lct_resnet26"))
    tensor = next(t for t in model.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] = value
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    return model
