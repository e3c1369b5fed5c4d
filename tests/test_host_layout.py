"""Graphs laid out for this host: the same answers as the portable graph and as PyTorch in float64."""

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper, shape_inference
from torch import nn
from torch.nn import functional

import exporters.host.layout
from exporters.functions import LINEAR_CONTEXT_TRANSFORM, attention_function, with_layer_normalization
from exporters.gates import read_gates
from exporters.graph import export_graph
from exporters.host.layout import HostGraph, lay_out
from exporters.nodes import attention_nodes
from exporters.quantization.calibration import calibrate
from exporters.quantization.histogram import DEFAULT_METHOD
from exporters.quantization.qdq import quantize
from lct_deploy.architecture import legal_groups, model_config
from lct_deploy.errors import ExportError
from lct_deploy.kernels.cpu import op_library
from lct_deploy.manifest import Precision
from lct_deploy.models import ResNet
from lct_deploy.models.classifier import ImageClassifier
from lct_deploy.models.lct import LinearContextTransform
from lct_deploy.models.resnet import BasicBlock
from lct_deploy.parity import in_batches
from lct_deploy.preprocessing import Preprocessing
from lct_deploy.runtime import RuntimeOptions, open_artifact
from tests.conftest import random_network

CLASSES = 10
FP32 = 1e-5  # of the largest logit
GATE = 5e-5  # deep in a network, whose activations carry rounding errors of their own
LIBRARY = [pytest.param(True, marks=pytest.mark.skipif(op_library() is None, reason="no op library")), False]
ALIKE = 14  # dB between an int8 graph laid out and in Q/DQ: roundings differ, and random networks amplify
WORSE = {True: 1.5, False: 2.5}  # dB that a layout may lose to it against float32, with the library or not
LIMIT = 1e-4  # what a proof allows; few channels of nearly the same context amplify every rounding

# Basic and bottleneck blocks, every attention and none, odd image sizes. At 64 pixels the first
# stage of a bottleneck network has images that are large for its channels.
NETWORKS = [
    ("lct_resnet18", 33),
    ("lct_resnet20", 32),
    ("lct_resnet26", 64),
    ("se_resnet18", 47),
    ("se_plus_resnet26", 65),
    ("resnet20", 31),
]
WITH_ATTENTION = NETWORKS[:-1]
BASIC = [name for name in WITH_ATTENTION if "26" not in name[0]]


def preprocessing(size: int) -> Preprocessing:
    return Preprocessing(resize=size, crop=size)


def noise(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Blocks of colour with noise over them, as the activations of photographs vary."""
    rng = np.random.default_rng(seed)
    blocks = (
        rng.integers(0, 256, (count, -(-size // 4), -(-size // 4), 3)).repeat(4, axis=1).repeat(4, axis=2)
    )
    noisy = blocks[:, :size, :size] + rng.normal(0, 20, (count, size, size, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def black(count: int, size: int) -> np.ndarray:
    return np.zeros((count, size, size, 3), np.uint8)


def white(count: int, size: int) -> np.ndarray:
    return np.full((count, size, size, 3), 255, np.uint8)


def static(count: int, size: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 2, (count, size, size, 3), dtype=np.uint8) * 255


IMAGES: list[Callable[[int, int], np.ndarray]] = [noise, black, white, static]


@cache
def network(arch: str) -> ResNet:
    return random_network(model_config(arch, num_classes=CLASSES), size=32)


@cache
def fp32(arch: str, size: int) -> ModelProto:
    return export_graph(network(arch), preprocessing(size), metadata={"lct.arch": arch}).model


@cache
def int8(arch: str, size: int, groups: int | None = None) -> ModelProto:
    model = with_layer_normalization(fp32(arch, size))
    model = model if groups is None else regrouped(model, groups)
    calibration = calibrate(model, np.split(noise(16, size), 4), DEFAULT_METHOD, total=4)
    return quantize(model, calibration, "onnxruntime")


def resized(model: ModelProto, height: int, width: int) -> ModelProto:
    """The same network for images of another size: all of it is convolutions and means."""
    other = ModelProto()
    other.CopyFrom(model)
    dims = other.graph.input[0].type.tensor_type.shape.dim
    dims[1].dim_value, dims[2].dim_value = height, width
    del other.graph.value_info[:]
    return shape_inference.infer_shapes(other, check_type=True, strict_mode=True)


def regrouped(model: ModelProto, groups: int) -> ModelProto:
    other = ModelProto()
    other.CopyFrom(model)
    for node in attention_nodes(other):
        next(a for a in node.attribute if a.name == "groups").i = groups
    return other


def with_groups(source: ResNet, groups: int) -> ResNet:
    other = copy.deepcopy(source)
    for attention in other.attention_blocks().values():
        assert isinstance(attention, LinearContextTransform)
        attention.groups = groups
    return other


def in_float64(source: ResNet, images: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits and every block's gate, all of the network in float64."""
    classifier = ImageClassifier(copy.deepcopy(source), preprocessing(32)).double().eval()
    gates: dict[str, np.ndarray] = {}

    def keep(name: str, attention: LinearContextTransform) -> Callable[..., None]:
        def record(_: nn.Module, inputs: tuple[torch.Tensor]) -> None:
            gates[name] = attention.gate(inputs[0]).numpy()

        return record

    for name, attention in classifier.network.attention_blocks().items():
        attention.register_forward_pre_hook(keep(name, attention))  # pyright: ignore[reportArgumentType]
    with torch.inference_mode():
        return classifier(torch.tensor(images)).numpy(), gates


def run(model: ModelProto, images: np.ndarray, batch: int, directory: Path) -> np.ndarray:
    """Logits as the product's own runtime computes them, in batches of exactly `batch`."""
    data = model.SerializeToString()
    path = directory / f"{hashlib.sha256(data).hexdigest()}.onnx"
    path.write_bytes(data)
    runtime = open_artifact("onnxruntime", path, RuntimeOptions(threads=1))
    try:
        return in_batches(lambda chunk: [runtime.infer(chunk)], images, batch)[0]
    finally:
        runtime.close()
        path.unlink()


def error(reference: np.ndarray, values: np.ndarray) -> float:
    return float(np.abs(values - reference).max() / np.abs(reference).max())


def sqnr(reference: np.ndarray, values: np.ndarray) -> float:
    """Signal to noise in dB; six are a bit."""
    return float(10 * np.log10((reference**2).sum() / max(((reference - values) ** 2).sum(), 1e-30)))


def count(model: ModelProto, *ops: str) -> int:
    return sum(node.op_type in ops for node in model.graph.node)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


def portable(precision: Precision, arch: str, size: int) -> ModelProto:
    return (fp32 if precision == "fp32" else int8)(arch, size)


@cache
def of_three(precision: Precision, arch: str, size: int, library: bool) -> HostGraph:
    return lay_out(portable(precision, arch, size), precision, batch=3, library=library)


@cache
def expected(arch: str, size: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    return in_float64(network(arch), noise(8, size, 1))


def assert_float_answers(
    host: HostGraph, graph: ModelProto, source: ResNet, images: np.ndarray, batch: int, scratch: Path
) -> None:
    logits = run(host.model, images, batch, scratch)
    assert logits.dtype == np.float32
    assert error(run(graph, images, len(images), scratch), logits) < LIMIT
    assert error(in_float64(source, images)[0], logits) < LIMIT


# Answers


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("library", LIBRARY)
@pytest.mark.parametrize(("arch", "size"), NETWORKS)
def test_logits_are_near_those_of_the_graph_and_of_float64(
    arch: str, size: int, library: bool, precision: Precision, scratch: Path
) -> None:
    images, (reference, _) = noise(8, size, 1), expected(arch, size)
    unlaid = run(portable(precision, arch, size), images, 8, scratch)
    for batch in (3, 1, 8) if library else (3,):
        host = (
            of_three(precision, arch, size, library)
            if batch == 3
            else lay_out(portable(precision, arch, size), precision, batch=batch, library=library)
        )
        logits = run(host.model, images, batch, scratch)
        if precision == "fp32":
            assert error(unlaid, logits) < FP32
            assert error(reference, logits) < FP32
        else:
            assert sqnr(unlaid, logits) > ALIKE
            assert sqnr(reference, logits) > sqnr(reference, unlaid) - WORSE[library]


@pytest.mark.parametrize("library", LIBRARY)
def test_a_deep_network(library: bool, scratch: Path) -> None:
    arch, size = "lct_resnet50", 64
    host, images = lay_out(fp32(arch, size), "fp32", batch=2, library=library), noise(2, size, 1)
    logits = run(host.model, images, 2, scratch)
    assert error(run(fp32(arch, size), images, 2, scratch), logits) < FP32
    assert error(in_float64(network(arch), images)[0], logits) < FP32


GROUPS_20 = legal_groups(model_config("lct_resnet20").family.stage_channels)
GROUPS_26 = legal_groups(model_config("lct_resnet26").family.stage_channels)


@settings(max_examples=20, deadline=None)
@given(
    groups=st.sampled_from(GROUPS_20),
    size=st.tuples(st.integers(4, 45), st.integers(4, 45)),
    batch=st.integers(1, 5),
    library=st.booleans(),
    kind=st.sampled_from(IMAGES),
)
def test_basic_blocks_of_any_groups_resolution_batch_and_image(
    groups: int,
    size: tuple[int, int],
    batch: int,
    library: bool,
    kind: Callable[[int, int], np.ndarray],
    scratch: Path,
) -> None:
    source = with_groups(network("lct_resnet20"), groups)
    model = resized(regrouped(fp32("lct_resnet20", 32), groups), *size)
    images = kind(batch, max(size))[:, : size[0], : size[1]]
    host = lay_out(model, "fp32", batch=batch, library=library and op_library() is not None)
    assert_float_answers(host, model, source, images, batch, scratch)


@settings(max_examples=4, deadline=None)
@given(
    groups=st.sampled_from(GROUPS_26),
    size=st.tuples(st.integers(33, 70), st.integers(33, 70)),
    batch=st.integers(1, 3),
    library=st.booleans(),
    kind=st.sampled_from(IMAGES),
)
def test_bottlenecks_of_any_groups_resolution_batch_and_image(
    groups: int,
    size: tuple[int, int],
    batch: int,
    library: bool,
    kind: Callable[[int, int], np.ndarray],
    scratch: Path,
) -> None:
    source = with_groups(network("lct_resnet26"), groups)
    model = resized(regrouped(fp32("lct_resnet26", 64), groups), *size)
    images = kind(batch, max(size))[:, : size[0], : size[1]]
    host = lay_out(model, "fp32", batch=batch, library=library and op_library() is not None)
    assert_float_answers(host, model, source, images, batch, scratch)


@pytest.mark.parametrize("library", LIBRARY)
@settings(max_examples=8, deadline=None)
@given(
    groups=st.sampled_from(GROUPS_20),
    size=st.tuples(st.integers(8, 45), st.integers(8, 45)),
    batch=st.integers(1, 5),
)
def test_integer_blocks_of_any_groups_resolution_and_batch(
    library: bool, groups: int, size: tuple[int, int], batch: int, scratch: Path
) -> None:
    source = with_groups(network("lct_resnet20"), groups)
    model = resized(int8("lct_resnet20", 32, groups), *size)
    images = noise(batch, max(size), 1)[:, : size[0], : size[1]]
    logits = run(lay_out(model, "int8", batch=batch, library=library).model, images, batch, scratch)
    reference, _ = in_float64(source, images)
    unlaid = run(model, images, batch, scratch)
    assert sqnr(unlaid, logits) > ALIKE
    # On one small image two ways of rounding may be a few dB apart.
    assert sqnr(reference, logits) > min(16, sqnr(reference, unlaid) - WORSE[library])


@pytest.mark.parametrize("library", LIBRARY)
@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize(("arch", "size"), [("lct_resnet20", 32), ("lct_resnet26", 64)])
def test_extreme_images_in_integers(
    arch: str, size: int, kind: Callable[[int, int], np.ndarray], library: bool, scratch: Path
) -> None:
    host, images = lay_out(int8(arch, size), "int8", batch=2, library=library), kind(2, size)
    logits = run(host.model, images, 2, scratch)
    assert np.isfinite(logits).all()
    assert sqnr(run(int8(arch, size), images, 2, scratch), logits) > 8


# Near-zero variance within a group


def tied(arch: str, *, scale: float | None) -> ResNet:
    """A copy of `network(arch)` whose groups hardly vary before the attention.

    γ and β are the same within a group; with a `scale` γ is that, without one the filters of a group
    are the same too, so that its variance is zero but for rounding.
    """
    other = copy.deepcopy(network(arch))
    for stage in other.stages:
        assert isinstance(stage, nn.Sequential)
        for block in stage:
            last: nn.Conv2d = block.conv2 if isinstance(block, BasicBlock) else block.conv3  # pyright: ignore[reportAssignmentType]
            norm: nn.BatchNorm2d = block.bn2 if isinstance(block, BasicBlock) else block.bn3  # pyright: ignore[reportAssignmentType]
            assert isinstance(block.attn, LinearContextTransform)
            first = torch.arange(block.attn.channels)
            first -= first % (block.attn.channels // block.attn.groups)
            norm.bias.copy_(torch.linspace(-1, 1, len(first))[first])
            if scale is None:
                assert norm.running_mean is not None
                assert norm.running_var is not None
                last.weight.copy_(last.weight[first])
                norm.running_mean.copy_(norm.running_mean[first])
                norm.running_var.copy_(norm.running_var[first])
            else:
                norm.weight.fill_(scale)
    return other


TIED = [
    ("lct_resnet20", 32, 0.0),
    ("lct_resnet20", 32, 3e-3),
    ("lct_resnet20", 32, None),
    ("lct_resnet26", 64, None),
]


@cache
def tied_graph(arch: str, size: int, scale: float | None) -> tuple[ResNet, ModelProto]:
    source = tied(arch, scale=scale)
    return source, export_graph(source, preprocessing(size), metadata={}).model


@pytest.mark.parametrize("library", LIBRARY)
@pytest.mark.parametrize(("arch", "size", "scale"), TIED)
def test_groups_of_hardly_any_variance(
    arch: str, size: int, scale: float | None, library: bool, scratch: Path
) -> None:
    source, model = tied_graph(arch, size, scale)
    images = np.concatenate([kind(2, size) for kind in IMAGES])
    host = lay_out(model, "fp32", batch=3, library=library)
    logits = run(host.model, images, 3, scratch)
    reference, _ = in_float64(source, images)
    with torch.inference_mode():
        eager = ImageClassifier(source, preprocessing(size))(torch.tensor(images)).numpy()
    # 1/sqrt(ε) amplifies any rounding of the context 300 times, PyTorch's own too.
    assert error(reference, logits) < LIMIT
    if library:
        assert error(reference, logits) < max(FP32, 4 * error(reference, eager))


# Gates


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("library", LIBRARY)
@pytest.mark.parametrize(("arch", "size"), WITH_ATTENTION)
def test_every_gate_can_be_read_and_is_near_that_of_float64(
    arch: str, size: int, library: bool, precision: Precision, scratch: Path
) -> None:
    onnx.save(of_three(precision, arch, size, library).model, scratch / "host.onnx")
    gates = read_gates(scratch / "host.onnx", noise(8, size, 1), batch=3)
    _, reference = expected(arch, size)
    assert sorted(gates) == sorted(reference)
    for layer, values in reference.items():
        difference = np.abs(gates[layer] - values)
        assert difference.max() < GATE if precision == "fp32" else difference.mean() < 0.06, layer


# Structure


@pytest.mark.parametrize("library", LIBRARY)
@pytest.mark.parametrize(("arch", "size"), NETWORKS)
def test_float_blocks_stay_in_one_layout(arch: str, size: int, library: bool) -> None:
    model = of_three("fp32", arch, size, library).model
    assert count(model, "ReorderInput") <= 1
    assert count(model, "ReorderOutput") <= 1
    assert {node.domain for node in model.graph.node if node.op_type == "Conv"} <= {"com.microsoft.nchwc"}
    assert not model.functions


@pytest.mark.parametrize("library", LIBRARY)
@pytest.mark.parametrize(("arch", "size"), NETWORKS)
def test_no_float_tensor_stands_between_integer_blocks(arch: str, size: int, library: bool) -> None:
    """Nor becomes a gate eight bits: it stays in float32."""
    model = of_three("int8", arch, size, library).model
    assert not count(model, "Conv")
    assert not count(model, "QuantizeLinear")
    if library and arch != "resnet20":
        assert not count(model, "QLinearAdd")
    assert not model.functions


@pytest.mark.parametrize(("size", "appends"), [((16, 32), False), ((11, 24), False), ((32, 30), True)])
def test_the_fourth_channel_is_the_same_to_the_byte(
    size: tuple[int, int], appends: bool, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Appended by a product where rows are whole groups of pixels, else by the graph's own Concat."""
    model, images = resized(int8("resnet20", 32), *size), noise(3, 32)[:, : size[0], : size[1]]
    host = lay_out(model, "int8", batch=3, library=False).model
    assert count(host, "Concat") == appends
    logits = run(host, images, 3, scratch)
    monkeypatch.setattr(exporters.host.layout, "append_by_product", Mock())
    concatenated = lay_out(model, "int8", batch=3, library=False).model
    assert count(concatenated, "Concat") == 1
    assert np.array_equal(run(concatenated, images, 3, scratch), logits)


@pytest.mark.parametrize("library", LIBRARY)
def test_the_form_is_told_and_so_is_the_need_of_the_library(library: bool) -> None:
    host = of_three("fp32", "lct_resnet18", 33, library)
    assert host.needs_library == library
    assert "8 blocks" in host.attention
    assert any(node.domain == "lct" for node in host.model.graph.node) == library
    without = of_three("fp32", "resnet20", 31, library)
    assert (without.attention, without.needs_library) == ("none", False)


@pytest.mark.parametrize(("arch", "size"), BASIC)
def test_basic_blocks_are_not_hoisted(arch: str, size: int) -> None:
    """Their last convolution is 3x3: no mean of its input gives that of its output."""
    assert "weights" not in of_three("fp32", arch, size, False).attention


def test_bottlenecks_are_hoisted_where_images_are_large() -> None:
    large, small = (
        lay_out(resized(fp32("lct_resnet26", 64), size, size), "fp32", batch=1, library=False).attention
        for size in (64, 33)
    )
    assert "weights" in large
    assert "weights" not in small


def test_the_source_is_left_alone_and_its_metadata_kept() -> None:
    precisions: tuple[Precision, ...] = ("fp32", "int8")
    for precision in precisions:
        model = portable(precision, "lct_resnet20", 32)
        before = model.SerializeToString(deterministic=True)
        host = lay_out(model, precision, batch=2, library=op_library() is not None)
        assert model.SerializeToString(deterministic=True) == before
        kept = {entry.key: entry.value for entry in host.model.metadata_props}
        assert kept == {entry.key: entry.value for entry in model.metadata_props}
        (image,), (logits,) = host.model.graph.input, host.model.graph.output
        assert (image.name, logits.name) == ("image", "logits")
        assert [dim.dim_value for dim in image.type.tensor_type.shape.dim] == [2, 32, 32, 3]


# What cannot be laid out


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_has_no_layout_here(precision: Precision) -> None:
    with pytest.raises(ExportError, match=f"no {precision} kernels on CPUs"):
        lay_out(fp32("lct_resnet20", 32), precision, batch=1, library=False)


def read_elsewhere(model: ModelProto) -> None:
    x = attention_nodes(model)[0].input[0]
    model.graph.output.append(helper.make_tensor_value_info(x, TensorProto.FLOAT, None))


def not_rectified(model: ModelProto) -> None:
    y = attention_nodes(model)[0].output[0]
    add = next(node for node in model.graph.node if y in node.input)
    relu = next(node for node in model.graph.node if add.output[0] in node.input)
    relu.op_type = "Tanh"


def not_added(model: ModelProto) -> None:
    y = attention_nodes(model)[0].output[0]
    next(node for node in model.graph.node if y in node.input).op_type = "Sub"


@pytest.mark.parametrize("change", [read_elsewhere, not_rectified, not_added])
def test_an_attention_that_stands_elsewhere_is_named(change: Callable[[ModelProto], None]) -> None:
    model = ModelProto()
    model.CopyFrom(fp32("lct_resnet20", 32))
    change(model)
    with pytest.raises(ExportError, match=r"layer1\.0\.attn: "):
        lay_out(model, "fp32", batch=1, library=False)


def test_attention_in_plain_operators_stays_as_it_is(scratch: Path) -> None:
    config = model_config("lct_resnet20", num_classes=CLASSES, normalize=False)
    source = random_network(config, size=32)
    model = export_graph(source, preprocessing(32), metadata={}).model
    host = lay_out(model, "fp32", batch=2, library=op_library() is not None)
    assert_float_answers(host, model, source, noise(2, 32), 2, scratch)


# One block alone, of any shape


@dataclass(frozen=True)
class Block:
    """conv → relu → conv → attention, added to the block's input or to a projection of it, rectified.

    `direct` leaves the first convolution out.
    """

    channels: int
    group_size: int
    height: int
    width: int
    batch: int
    kernel: int
    projected: bool
    identity_first: bool
    library: bool
    seed: int
    direct: bool = False

    @property
    def groups(self) -> int:
        return self.channels // self.group_size


def blocks_of(channels: int, *, projected: bool) -> st.SearchStrategy[Block]:
    return st.builds(
        Block,
        channels=st.just(channels),
        group_size=st.sampled_from([m for m in range(2, channels + 1) if channels % m == 0]),
        height=st.integers(1, 24),
        width=st.integers(1, 24),
        batch=st.integers(1, 5),
        kernel=st.sampled_from([1, 3]),
        projected=st.just(projected),
        identity_first=st.just(False) if projected else st.booleans(),
        library=st.booleans() if op_library() else st.just(False),
        seed=st.integers(0, 1000),
    )


BLOCKS = st.tuples(st.integers(1, 8), st.booleans()).flatmap(
    lambda drawn: blocks_of(16 * drawn[0], projected=drawn[1])
)


def block_weights(block: Block) -> dict[str, np.ndarray]:
    rng, c = np.random.default_rng(block.seed), block.channels
    shapes = {
        "stem": (c, 3, 3, 3),
        "first": (c, c, 1, 1),
        "conv": (c, c, block.kernel, block.kernel),
        "project": (c, c, 1, 1),
    }
    weights = {
        f"{name}.weight": rng.normal(0, 1, shape) / np.sqrt(np.prod(shape[1:]))
        for name, shape in shapes.items()
    }
    vectors = {name: rng.normal(0, 1, c) for name in (*(f"{name}.bias" for name in shapes), "w", "b")}
    return {name: values.astype(np.float32) for name, values in (weights | vectors).items()}


def block_graph(block: Block) -> ModelProto:
    """As an export writes it: the block between a stem and a mean, the attention one node."""
    kernel, pads = [block.kernel] * 2, [block.kernel // 2] * 4
    u, identity = "t" if block.direct else "u", "skip" if block.projected else "t"
    skip = helper.make_node("Conv", ["t", "project.weight", "project.bias"], ["skip"], kernel_shape=[1, 1])
    first = [
        helper.make_node("Conv", ["t", "first.weight", "first.bias"], ["first"], kernel_shape=[1, 1]),
        helper.make_node("Relu", ["first"], ["u"]),
    ]
    attention = helper.make_node(
        LINEAR_CONTEXT_TRANSFORM, ["x", "w", "b"], ["y"],
        domain="lct", groups=block.groups, epsilon=1e-5,
    )  # fmt: skip
    attention.metadata_props.add(key="lct.module", value="block.attn")
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node(
            "Conv", ["nchw", "stem.weight", "stem.bias"], ["stem"], kernel_shape=[3, 3], pads=[1] * 4
        ),
        helper.make_node("Relu", ["stem"], ["t"]),
        *([] if block.direct else first),
        helper.make_node("Conv", [u, "conv.weight", "conv.bias"], ["x"], kernel_shape=kernel, pads=pads),
        attention,
        *([skip] if block.projected else []),
        helper.make_node("Add", [identity, "y"] if block.identity_first else ["y", identity], ["sum"]),
        helper.make_node("Relu", ["sum"], ["out"]),
        helper.make_node("ReduceMean", ["out", "axes"], ["logits"], keepdims=0),
    ]
    weights = {**block_weights(block), "axes": np.array([2, 3])}
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "block",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", block.height, block.width, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", block.channels])],
        [numpy_helper.from_array(values, name) for name, values in weights.items() if name in used],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("lct", 1)]
    function = attention_function(LINEAR_CONTEXT_TRANSFORM, 20)
    model = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=10)
    return shape_inference.infer_shapes(model, check_type=True, strict_mode=True)


def block_in_float64(block: Block, images: np.ndarray) -> np.ndarray:
    t = {name: torch.tensor(values).double() for name, values in block_weights(block).items()}
    image = torch.tensor(images).double().permute(0, 3, 1, 2)
    start = functional.conv2d(image, t["stem.weight"], t["stem.bias"], padding=1).relu()
    u = start if block.direct else functional.conv2d(start, t["first.weight"], t["first.bias"]).relu()
    x = functional.conv2d(u, t["conv.weight"], t["conv.bias"], padding=block.kernel // 2)
    attention = LinearContextTransform(block.channels, block.groups, epsilon=1e-5).double()
    attention.w.data, attention.b.data = t["w"], t["b"]
    skip = functional.conv2d(start, t["project.weight"], t["project.bias"]) if block.projected else start
    with torch.inference_mode():
        return (attention(x) + skip).relu().mean(dim=(2, 3)).numpy()


def assert_block(block: Block, kind: Callable[[int, int], np.ndarray], scratch: Path) -> None:
    model = block_graph(block)
    images = kind(block.batch, 24)[:, : block.height, : block.width]
    host = lay_out(model, "fp32", batch=block.batch, library=block.library)
    logits = run(host.model, images, block.batch, scratch)
    assert error(block_in_float64(block, images), logits) < GATE
    assert count(host.model, "ReorderInput") <= 1
    assert count(host.model, "ReorderOutput") <= 1


@settings(max_examples=50, deadline=None)
@given(block=BLOCKS, kind=st.sampled_from(IMAGES))
def test_any_single_block(block: Block, kind: Callable[[int, int], np.ndarray], scratch: Path) -> None:
    assert_block(block, kind, scratch)


@pytest.mark.parametrize("library", LIBRARY)
@pytest.mark.parametrize("kernel", [1, 3])
def test_the_projection_may_be_the_first_operand_of_the_addition(
    kernel: int, library: bool, scratch: Path
) -> None:
    """As in `identity + out`, which .onnx files of other networks have."""
    assert_block(Block(32, 4, 9, 9, 2, kernel, True, True, library, 0), noise, scratch)


@pytest.mark.parametrize("batch", [1, 2])
def test_the_convolution_may_read_the_identity_itself(batch: int, scratch: Path) -> None:
    assert_block(Block(32, 4, 24, 24, batch, 1, False, False, False, 0, direct=True), noise, scratch)


@pytest.mark.parametrize("channels", [12, 20, 36])
def test_channels_that_do_not_fit_the_layout_are_named(channels: int) -> None:
    block = Block(channels, 4, 8, 8, 1, 3, False, False, False, 0)
    with pytest.raises(ExportError, match=rf"block\.attn: {channels} channels"):
        lay_out(block_graph(block), "fp32", batch=1, library=False)
