"""What TensorRT makes of the graph: how many kernels, and that none moves a whole tensor.

Counted in engines of TensorRT-RTX, which builds without a GPU. docs/decisions/0010 has the counts of other
forms; a TensorRT that fuses better may come under these.
"""

from functools import cache

import pytest
from onnx import ModelProto

from exporters.graph import export_graph
from exporters.half import to_half
from exporters.quantization.calibration import Calibration, calibrate
from exporters.quantization.qdq import quantize
from exporters.quantization.stem import cast_first
from exporters.spelling import spell_out
from exporters.tensorrt.build import build_engine
from exporters.tensorrt.layers import EngineLayer, summarize
from exporters.tensorrt.options import BuildOptions
from lct_deploy.architecture import model_config
from lct_deploy.manifest import Precision
from lct_deploy.preprocessing import Preprocessing
from lct_deploy.runtime.flavours import Flavour, load_flavour
from tests.conftest import random_network
from tests.test_quantization import noise

SIZE = 64
BLOCKS = 8  # of a resnet18 or resnet26
PER_BLOCK = {"lct": 2, "se": 4, "se_plus": 5}  # a pooling, SE's two products, SE+'s normalisation, the rest
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8", "fp8")
EIGHT_BIT = {"int8": "Int8", "fp8": "FP8"}
NO_WORK = ("shape_call", "signal", "wait")  # of the host, and between the streams of an engine


@pytest.fixture(scope="module")
def rtx() -> Flavour:
    return load_flavour("tensorrt-rtx")


@cache
def portable(arch: str, size: int = SIZE) -> ModelProto:
    network = random_network(model_config(arch, num_classes=10), size=SIZE)
    return export_graph(network, Preprocessing(resize=size, crop=size), metadata={}).model


@cache
def calibration(arch: str) -> Calibration:
    return calibrate(portable(arch), [noise(8, SIZE)], "min-max", total=1)


def spelled(arch: str, precision: Precision) -> ModelProto:
    model = portable(arch)
    if precision in ("int8", "fp8"):
        return spell_out(quantize(model, calibration(arch), "tensorrt", precision))
    return spell_out(to_half(model, precision) if precision in ("fp16", "bf16") else cast_first(model))


def layers_of(graph: ModelProto, rtx: Flavour, gpu: str = "sm89") -> tuple[EngineLayer, ...]:
    return build_engine(graph, BuildOptions(gpus=(gpu,)), flavour=rtx, announce=print).layers


def working(layers: tuple[EngineLayer, ...]) -> list[EngineLayer]:
    return [layer for layer in layers if layer.kind not in NO_WORK]


def assert_no_tensor_is_moved(layers: tuple[EngineLayer, ...]) -> None:
    """The image's own transpose is in one kernel with its cast and scaling."""
    moved = [layer.name for layer in layers if layer.transposes]
    assert moved in ([], [layer.name for layer in layers if layer.inputs and layer.inputs[0].name == "image"])


@pytest.mark.parametrize(("arch", "most"), [("resnet50", 58), ("lct_resnet50", 89)])
def test_lct_resnet50_has_two_kernels_more_for_each_attention(arch: str, most: int, rtx: Flavour) -> None:
    layers = layers_of(spell_out(cast_first(portable(arch, 224))), rtx)
    assert len(layers) <= most, summarize(layers)
    assert_no_tensor_is_moved(layers)
    poolings = [layer for layer in layers if layer.kind == "avgpool"]
    assert len(poolings) == (16 if arch == "lct_resnet50" else 1)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_attention_costs_two_kernels_in_every_precision(precision: Precision, rtx: Flavour) -> None:
    plain = layers_of(spelled("resnet18", precision), rtx)
    layers = layers_of(spelled("lct_resnet18", precision), rtx)
    assert len(working(layers)) <= len(working(plain)) + PER_BLOCK["lct"] * BLOCKS, summarize(layers)
    assert_no_tensor_is_moved(layers)


@pytest.mark.parametrize("kind", ["se", "se_plus"])
def test_the_other_attentions(kind: str, rtx: Flavour) -> None:
    plain = layers_of(spelled("resnet18", "fp16"), rtx)
    layers = layers_of(spelled(f"{kind}_resnet18", "fp16"), rtx)
    assert len(working(layers)) <= len(working(plain)) + PER_BLOCK[kind] * BLOCKS, summarize(layers)
    assert_no_tensor_is_moved(layers)


@pytest.mark.parametrize("precision", EIGHT_BIT)
@pytest.mark.parametrize("gpu", ["sm89", "sm120"])
def test_every_convolution_of_an_eight_bit_graph_reads_eight_bits(
    precision: Precision, gpu: str, rtx: Flavour
) -> None:
    graph = spelled("lct_resnet26", precision)
    found = [layer for layer in layers_of(graph, rtx, gpu) if layer.kind == "correlation"]
    assert len(found) == sum(node.op_type == "Conv" for node in graph.graph.node)
    stem, *others = [layer.inputs[0].dtype for layer in found]
    assert set(others) == {EIGHT_BIT[precision]}
    assert stem == ("Int8" if precision == "int8" else "Float")  # three channels are too few for fp8
