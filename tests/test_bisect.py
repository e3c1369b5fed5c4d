"""The layer whose precision costs most is named: planted culprits of every kind, and honest graphs."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper
from PIL import Image

from exporters import bisect
from exporters.bisect import Blame, blame
from exporters.functions import with_layer_normalization
from exporters.graph import export_graph
from exporters.half import Half, emulate, to_half
from exporters.hybrids import Hybrids
from exporters.quantization.calibration import Calibration, calibrate
from exporters.quantization.histogram import DEFAULT_METHOD, Range
from exporters.quantization.placement import Target
from exporters.quantization.qdq import quantize
from exporters.spelling import spell_out
from lct_deploy.architecture import model_config
from lct_deploy.atomic import sha256_file
from lct_deploy.bundle import open_bundle, write_manifest
from lct_deploy.checkpoint import load_checkpoint
from lct_deploy.errors import ExportError, UsageError
from lct_deploy.preprocessing import Preprocessing, preprocess
from lct_deploy.sample import DEMO_CHECKPOINT, load_sample
from tests.conftest import QuickCli, random_network
from tests.test_imports import HEAVY, run_without

Sabotage = Callable[[ModelProto], None]
TARGETS: tuple[Target, ...] = ("onnxruntime", "tensorrt")


@cache
def sample_inputs() -> np.ndarray:
    preprocessing = Preprocessing(resize=28, crop=28)
    return np.stack([preprocess(Image.fromarray(x), preprocessing) for x in load_sample().images[:80]])


def seen() -> np.ndarray:
    return sample_inputs()[:64]


def unseen() -> np.ndarray:
    return sample_inputs()[64:]


@cache
def shipped() -> ModelProto:
    loaded = load_checkpoint(DEMO_CHECKPOINT)
    assert loaded.metadata is not None
    assert loaded.metadata.preprocessing is not None
    return export_graph(loaded.model, loaded.metadata.preprocessing, metadata={}).model


@cache
def calibration() -> Calibration:
    return calibrate(shipped(), np.split(seen(), 8), DEFAULT_METHOD, total=8)


@cache
def random_model(arch: str, *, normalize: bool = True) -> ModelProto:
    network = random_network(model_config(arch, num_classes=10, normalize=normalize), size=28)
    return export_graph(network, Preprocessing(resize=28, crop=28), metadata={}).model


def int8(model: ModelProto, target: Target = "onnxruntime") -> ModelProto:
    return quantize(model, calibrate(model, [seen()[:16]], DEFAULT_METHOD, total=1), target)


def output_of(model: ModelProto, node: str) -> str:
    return next(n.output[0] for n in model.graph.node if n.name == node)


def with_wide_range(node: str, target: Target = "onnxruntime", factor: float = 40) -> ModelProto:
    """The shipped network in int8, the range of what `node` gives widened."""
    tensor = output_of(shipped(), node)
    ranges = calibration().ranges
    wide = Range(ranges[tensor].low * factor, ranges[tensor].high * factor)
    return quantize(shipped(), replace(calibration(), ranges={**ranges, tensor: wide}), target)


def change(model: ModelProto, name: str, edit: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(edit(values).astype(values.dtype), name))


def coarse(values: np.ndarray) -> np.ndarray:
    """Two bits of mantissa."""
    mantissa, exponent = np.frexp(values.astype(np.float32))
    return np.ldexp(np.round(mantissa * 4) / 4, exponent)


# Planted culprits


@pytest.mark.parametrize(
    ("node", "layer", "module"),
    [
        ("layer2.1.relu/Relu", "layer2.1.bn1/Conv", "layer2.1.bn1"),  # the range stands behind the ReLU
        ("layer1.0.relu/Relu_2", "layer1.0/Add", "layer1.0"),
        ("avgpool/ReduceMean", "avgpool/ReduceMean", "avgpool"),
        ("relu/Relu", "bn1/Conv", "bn1"),
    ],
)
def test_a_range_that_is_too_wide(node: str, layer: str, module: str) -> None:
    found = blame(shipped(), with_wide_range(node, "tensorrt"), unseen())
    assert (found.culprit.node, found.culprit.module) == (layer, module)
    assert found.culprit.share > 0.5
    assert found.restored < 0.7 * found.error


@pytest.mark.parametrize(
    ("node", "module"),
    [
        ("layer3.1.attn/LinearContextTransform", "layer3.1.attn"),
        ("layer2.0.downsample.1/Conv", "layer2.0.downsample.1"),
        ("layer2.2.bn2/Conv", "layer2.2.bn2"),
    ],
)
def test_a_range_that_onnxruntime_alone_quantizes(node: str, module: str) -> None:
    found = blame(shipped(), with_wide_range(node), unseen())
    assert (found.culprit.node, found.culprit.module) == (node, module)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("weight", "node"),
    [
        ("network.layer3.0.downsample.0.weight_scale", "layer3.0.downsample.1/Conv"),
        ("network.layer1.2.conv2.weight_scale", "layer1.2.bn2/Conv"),
        ("network.fc.weight_scale", "fc/Gemm"),
    ],
)
def test_a_wrong_scale_of_weights(weight: str, node: str, target: Target) -> None:
    variant = quantize(shipped(), calibration(), target)
    change(variant, weight, lambda scale: scale * 1.6)
    found = blame(shipped(), variant, unseen())
    assert found.culprit.node == node
    assert found.runs < 20
    assert not found.runners_up


def test_a_wrong_scale_of_the_folded_stem() -> None:
    variant = quantize(shipped(), calibration(), "onnxruntime")
    change(variant, "network.conv1.weight_folded_scale", lambda scale: scale * 1.5)
    assert blame(shipped(), variant, unseen()).culprit.node == "bn1/Conv"


def test_parameters_of_an_attention_belong_to_it() -> None:
    variant = quantize(shipped(), calibration(), "onnxruntime")
    change(variant, "network.layer2.1.attn.inputs.1", lambda b: b + 3)
    assert blame(shipped(), variant, unseen()).culprit.module == "layer2.1.attn"


@pytest.mark.parametrize("arch", ["lct_resnet26", "resnet26"])
def test_in_networks_with_bottlenecks_and_max_pooling(arch: str) -> None:
    variant = int8(random_model(arch))
    change(variant, "network.layer3.1.conv2.weight_scale", lambda scale: -scale)
    found = blame(random_model(arch), variant, unseen())
    assert found.culprit.node == "layer3.1.bn2/Conv"


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize(
    ("weight", "node"),
    [
        ("network.layer1.1.conv1.weight", "layer1.1.bn1/Conv"),
        ("network.layer2.0.downsample.0.weight", "layer2.0.downsample.1/Conv"),
        ("network.fc.weight", "fc/Gemm"),
    ],
)
def test_rounding_that_is_too_coarse(weight: str, node: str, precision: Half) -> None:
    variant = to_half(shipped(), precision)
    change(variant, weight, coarse)
    found = blame(shipped(), variant, unseen())
    assert found.precision == precision
    assert found.culprit.node == node
    assert found.culprit.share > 0.5


def test_a_layer_that_overflows_in_fp16() -> None:
    """The next convolution takes the factor back: in fp32 the network is the same."""
    large = ModelProto()
    large.CopyFrom(shipped())
    for name in ("network.layer2.1.conv1.weight", "network.layer2.1.conv1.weight_bias"):
        change(large, name, lambda values: values * 2**16)
    change(large, "network.layer2.1.conv2.weight", lambda values: values / 2**16)
    for entry in large.graph.initializer:
        assert np.abs(numpy_helper.to_array(entry)).max() < 65504, entry.name
    found = blame(large, to_half(large, "fp16"), unseen())
    assert found.culprit.node == "layer2.1.bn1/Conv"
    assert found.error == found.culprit.error == float("inf")
    assert found.culprit.share == 1
    assert np.isfinite(found.restored)
    assert Blame.model_validate_json(found.model_dump_json()) == found


def test_one_culprit_takes_few_runs() -> None:
    found: list[tuple[float, int]] = []
    steps = bisect._search(range(64), 1.0, lambda group: 1.0 if 37 in group else 0.0, found)
    assert (len(list(steps)), max(found)) == (12, (1.0, 37))


def test_the_worst_layer_need_not_be_in_the_worse_half() -> None:
    errors = [0.5] * 8 + [0.0] * 7 + [0.9]
    found: list[tuple[float, int]] = []

    def measure(group: Sequence[int]) -> float:
        return float(np.sqrt(sum(errors[index] ** 2 for index in group)))

    list(bisect._search(range(16), measure(range(16)), measure, found))
    assert measure(range(8)) > measure(range(8, 16))
    assert max(found) == (0.9, 15)


# Honest graphs


@pytest.mark.parametrize("target", TARGETS)
def test_an_honest_graph_has_an_answer_too(target: Target) -> None:
    variant = quantize(shipped(), calibration(), target)
    found = blame(shipped(), variant, unseen())
    errors = [found.culprit.error, *(layer.error for layer in found.runners_up)]
    assert errors == sorted(errors, reverse=True)
    assert len(errors) <= 1 + bisect.RUNNERS_UP
    assert 0 < found.restored < found.error < 0.1 * found.logits
    assert found.images == 16
    assert found.runs <= 2 * found.layers


def variants(model: ModelProto) -> dict[str, ModelProto]:
    return {
        "int8-onnxruntime": int8(with_layer_normalization(model)),
        "int8-tensorrt": spell_out(int8(model, "tensorrt")),
        "fp16": emulate(to_half(model, "fp16")),
        "bf16": emulate(to_half(with_layer_normalization(model), "bf16")),
        "fp16-tensorrt": emulate(spell_out(to_half(model, "fp16"))),
    }


@pytest.mark.parametrize("arch", ["lct_resnet20", "se_resnet18"])
def test_all_layers_together_are_the_graphs_themselves(arch: str) -> None:
    model = random_model(arch)
    for name, variant in variants(model).items():
        hybrids = Hybrids(model, variant)
        for low, whole in (([], model), (hybrids.layers, variant), (hybrids.changed(), variant)):
            hybrid, expected = (bisect._logits(graph, unseen()[:2]) for graph in (hybrids.build(low), whole))
            np.testing.assert_array_equal(hybrid, expected, name)


def test_an_attention_in_plain_operators_is_not_suspected() -> None:
    model = random_model("lct_resnet20", normalize=False)
    hybrids = Hybrids(model, int8(model))
    changed = {layer.name for layer in hybrids.changed()}
    assert len(changed) < len(hybrids.layers) / 2
    assert not any("Sigmoid" in name for name in changed)
    assert {"fc/Gemm", "layer1.0.bn1/Conv", "layer1.0/Add"} <= changed


def test_the_graphs_are_left_alone() -> None:
    variant = quantize(shipped(), calibration(), "onnxruntime")
    before = [model.SerializeToString(deterministic=True) for model in (shipped(), variant)]
    blame(shipped(), variant, unseen()[:2])
    assert [m.SerializeToString(deterministic=True) for m in (shipped(), variant)] == before


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(UsageError, match="fp32"):
        blame(shipped(), shipped(), unseen())
    with pytest.raises(ExportError, match="no counterpart"):
        blame(random_model("lct_resnet26"), quantize(shipped(), calibration(), "onnxruntime"), unseen())
    same = ModelProto()
    same.CopyFrom(shipped())
    onnx.helper.set_model_props(same, {"lct.precision": "int8"})
    with pytest.raises(UsageError, match="do not differ"):
        blame(shipped(), same, unseen())


# The command


@pytest.fixture(scope="module")
def bundle(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped checkpoint's bundle with an int8 graph in which a scale is wrong."""
    path = tmp_path_factory.mktemp("bundles") / "int8"
    shutil.copytree(demo_bundle, path)
    manifest, file = open_bundle(path).manifest, path / "int8-onnxruntime.onnx"
    variant = quantize(onnx.load(path / "model.onnx"), calibration(), "onnxruntime")
    change(variant, "network.layer3.1.conv2.weight_scale", lambda scale: scale * 2)
    onnx.save(variant, file)
    artifact = manifest.artifacts[0].model_copy(
        update={
            "path": file.name,
            "sha256": sha256_file(file),
            "runtime": "onnxruntime",
            "precision": "int8",
            "source": "model.onnx",
        }
    )
    write_manifest(path, manifest.model_copy(update={"artifacts": (*manifest.artifacts, artifact)}))
    return path


def test_the_cli_names_the_layer(quick_cli: QuickCli, bundle: Path) -> None:
    done = quick_cli("verify", bundle, "--precision", "int8", "--bisect")
    assert done.returncode == 0
    assert "layer3.1.bn2/Conv (PyTorch layer3.1.bn2): alone it causes" in done.stdout
    assert "16 images" in done.stdout


def test_the_cli_prints_one_document_on_the_users_images(
    quick_cli: QuickCli, bundle: Path, tmp_path: Path
) -> None:
    for index, image in enumerate(load_sample().images[:3]):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    done = quick_cli("verify", bundle, "--precision", "int8", "--bisect", "--images", tmp_path, "--json")
    found = Blame.model_validate_json(done.stdout)
    assert (found.culprit.module, found.images) == ("layer3.1.bn2", 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--precision int8"),  # the bundle is for fp32
        (["--precision", "fp32"], "no precision to blame"),
        (["--precision", "int8", "--checkpoint", DEMO_CHECKPOINT], "drop --checkpoint"),
        (["--precision", "int8", "--images", "{empty}"], "holds no JPEG"),
        (["--precision", "int8", "--images", "{empty}/none"], "no such directory"),
    ],
)
def test_wrong_use_exits_2(
    quick_cli: QuickCli, bundle: Path, tmp_path: Path, arguments: list[object], message: str
) -> None:
    done = quick_cli("verify", bundle, "--bisect", *(str(a).format(empty=tmp_path) for a in arguments))
    assert done.returncode == 2
    assert message in done.stderr


def test_an_fp32_bundle_says_how_to_get_another(quick_cli: QuickCli, demo_bundle: Path) -> None:
    done = quick_cli("verify", demo_bundle, "--bisect")
    assert done.returncode == 2
    assert "export with --precision int8, fp8, fp16 or bf16" in done.stderr


def test_it_needs_no_torch() -> None:
    assert HEAVY[0] == "torch"
    done = run_without(("torch", "onnxscript", "safetensors"), "import exporters.bisect")
    assert done.returncode == 0, done.stderr
