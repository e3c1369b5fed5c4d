"""Exported graphs of every architecture against PyTorch, and what the bundle says of them."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exporters.graph import ExportedGraph, attention_nodes, export_graph
from exporters.options import ExportOptions
from lct_deploy.architecture import arch_names, model_config
from lct_deploy.bundle import open_bundle
from lct_deploy.checkpoint import LoadOptions, load_checkpoint
from lct_deploy.errors import ExportError, UsageError
from lct_deploy.models import ResNet
from lct_deploy.models.classifier import ImageClassifier
from lct_deploy.preprocessing import Preprocessing
from lct_deploy.sample import DEMO_CHECKPOINT
from tests.conftest import export, random_network

SIZE = 40
PREPROCESSING = Preprocessing(resize=SIZE, crop=SIZE)


def run(graph: ExportedGraph, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        graph.model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(["logits"], {"image": images})[0])


def reference(network: ResNet, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return ImageClassifier(network, PREPROCESSING)(torch.tensor(images)).numpy()


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def assert_equal_to_pytorch(graph: ExportedGraph, network: ResNet, images: np.ndarray) -> None:
    expected = reference(network, images)
    assert np.abs(run(graph, images) - expected).max() <= 1e-4 * np.abs(expected).max()


def is_exported_here(arch: str) -> bool:
    """Deep networks repeat the blocks of shallow ones: one with LCT stands for them."""
    return arch == "lct_resnet101" or not arch.endswith(("34", "50", "101", "152"))


@pytest.mark.parametrize("arch", [arch for arch in arch_names() if is_exported_here(arch)])
def test_every_architecture_exports_with_one_node_per_attention_block(arch: str) -> None:
    network = random_network(model_config(arch, num_classes=5), size=SIZE)
    graph = export_graph(network, PREPROCESSING, metadata={})
    certificate = graph.certificate
    assert certificate.attention_blocks == len(network.attention_blocks()) == len(certificate.fused)
    assert not certificate.misses
    assert [block.layer for block in certificate.fused] == list(network.attention_blocks())
    assert len(attention_nodes(graph.model)) == certificate.attention_blocks
    assert_equal_to_pytorch(graph, network, noise(3))


@pytest.fixture(scope="module")
def lct26() -> tuple[ResNet, ExportedGraph]:
    network = random_network(model_config("lct_resnet26", num_classes=5), size=SIZE)
    return network, export_graph(network, PREPROCESSING, metadata={"lct.arch": "lct_resnet26"})


def test_the_graph_takes_uint8_images_of_any_batch_and_gives_float_logits(
    lct26: tuple[ResNet, ExportedGraph],
) -> None:
    graph = lct26[1].model.graph
    image, logits = graph.input[0], graph.output[0]
    assert (image.name, logits.name) == ("image", "logits")
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert logits.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim] == ["N", SIZE, SIZE, 3]
    assert [d.dim_param or d.dim_value for d in logits.type.tensor_type.shape.dim] == ["N", 5]


@pytest.mark.parametrize("value", [0, 255, "noise"])
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_extreme_images_and_odd_batches(
    lct26: tuple[ResNet, ExportedGraph], value: int | str, batch: int
) -> None:
    network, graph = lct26
    images = noise(batch) if value == "noise" else np.full((batch, SIZE, SIZE, 3), value, np.uint8)
    assert_equal_to_pytorch(graph, network, images)


def test_an_answer_does_not_depend_on_the_rest_of_the_batch(lct26: tuple[ResNet, ExportedGraph]) -> None:
    images = noise(5)
    together = run(lct26[1], images)
    alone = np.concatenate([run(lct26[1], image[None]) for image in images])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5 * np.abs(together).max())


def test_nodes_are_named_after_modules_and_carry_no_trace_of_the_machine(
    lct26: tuple[ResNet, ExportedGraph],
) -> None:
    model = lct26[1].model
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert "layer1.0.attn/LinearContextTransform" in names
    assert "layer4.1.bn3/Conv" in names
    text = model.SerializeToString()
    assert b"stack_trace" not in text
    assert str(Path(__file__).parent.parent).encode() not in text
    assert {p.key: p.value for p in model.metadata_props} == {"lct.arch": "lct_resnet26"}


def test_batch_norm_is_folded_and_the_attention_keeps_its_attributes(
    lct26: tuple[ResNet, ExportedGraph],
) -> None:
    nodes = lct26[1].model.graph.node
    assert not [node for node in nodes if node.op_type == "BatchNormalization"]
    node = attention_nodes(lct26[1].model)[0]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert attributes["groups"] == 64
    assert attributes["epsilon"] == pytest.approx(1e-5)


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    groups=st.sampled_from([1, 2, 4, 8, 16]),
    epsilon=st.sampled_from([1e-7, 1e-5, 1e-2]),
    seed=st.integers(0, 1000),
)
def test_any_groups_and_epsilon(groups: int, epsilon: float, seed: int) -> None:
    config = model_config("lct_resnet18", num_classes=3, groups=groups, epsilon=epsilon)
    network = random_network(config, size=SIZE, seed=seed)
    assert_equal_to_pytorch(export_graph(network, PREPROCESSING, metadata={}), network, noise(2, seed))


@pytest.mark.parametrize("opset", [18, 23])
def test_the_oldest_and_the_newest_opset(opset: int) -> None:
    network = random_network(model_config("lct_resnet20", num_classes=3), size=SIZE)
    graph = export_graph(network, PREPROCESSING, opset=opset, metadata={})
    assert {e.domain: e.version for e in graph.model.opset_import} == {"": opset, "lct": 1}
    assert_equal_to_pytorch(graph, network, noise(2))


@pytest.mark.parametrize("opset", [7, 17, 24, 99])
def test_an_opset_out_of_range_is_refused(opset: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"opset {opset} is not supported"):
        export(DEMO_CHECKPOINT, tmp_path / "b", ExportOptions(opset=opset))
    assert not list(tmp_path.iterdir())


def test_stride_placement_changes_the_graph_as_it_changes_pytorch() -> None:
    for placement in ("v1.5", "caffe"):
        config = model_config("lct_resnet26", num_classes=3, stride_placement=placement)
        network = random_network(config, size=SIZE)
        graph = export_graph(network, PREPROCESSING, metadata={})
        strides = {
            n.name: onnx.helper.get_node_attr_value(n, "strides")
            for n in graph.model.graph.node
            if n.op_type == "Conv"
        }
        first, second = (2, 1) if placement == "caffe" else (1, 2)
        assert strides["layer2.0.bn1/Conv"] == [first, first]
        assert strides["layer2.0.bn2/Conv"] == [second, second]
        assert_equal_to_pytorch(graph, network, noise(2))


def test_the_ablation_without_transform_is_still_one_node() -> None:
    config = model_config("lct_resnet20", num_classes=3, transform=False)
    network = random_network(config, size=SIZE)
    graph = export_graph(network, PREPROCESSING, metadata={})
    assert len(graph.certificate.fused) == 9
    assert_equal_to_pytorch(graph, network, noise(2))


def test_the_ablation_without_normalisation_is_a_miss_that_names_layer_and_reason() -> None:
    config = model_config("lct_resnet20", num_classes=3, normalize=False)
    network = random_network(config, size=SIZE)
    graph = export_graph(network, PREPROCESSING, metadata={})
    assert len(graph.certificate.misses) == 9
    assert graph.certificate.misses[0].layer == "layer1.0.attn"
    assert "without normalisation" in graph.certificate.misses[0].reason
    assert_equal_to_pytorch(graph, network, noise(2))


@pytest.fixture
def unfusable(tmp_path: Path) -> Path:
    from lct_deploy.checkpoint import CheckpointMetadata, write_checkpoint

    config = model_config("lct_resnet20", num_classes=2, normalize=False)
    network = random_network(config, size=28)
    path = tmp_path / "ablation.safetensors"
    preprocessing = Preprocessing(resize=28, crop=28)
    write_checkpoint(
        path,
        network.state_dict(),
        CheckpointMetadata(model=config, labels=("a", "b"), preprocessing=preprocessing),
    )
    return path


def test_a_miss_fails_the_export_unless_asked_for(unfusable: Path, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    with pytest.raises(ExportError, match=r"9 of 9 attention blocks are not fused[\s\S]*--allow-unfused"):
        export(unfusable, output)
    assert not output.exists()
    manifest = export(unfusable, output, ExportOptions(allow_unfused=True))
    assert len(manifest.certificate.misses) == 9
    assert manifest.parity[0].passed


def test_a_foreign_checkpoint_is_exported_with_its_assumptions_written_down(
    lct18: Path, tmp_path: Path
) -> None:
    options = ExportOptions(image_size=64, labels=None, version="7")
    manifest = export(lct18, tmp_path / "my-model", options)
    assert (manifest.name, manifest.version, manifest.arch) == ("my-model", "7", "lct_resnet18")
    assert (manifest.input.crop, manifest.input.resize, manifest.input.height) == (64, 73, 64)
    assert manifest.labels == tuple("0123456")
    notes = " ".join(manifest.source.notes)
    for assumed in ("groups", "epsilon", "mean", "labels"):
        assert assumed in notes
    assert manifest.parity[0].images.real == 512


def test_flags_reach_the_manifest_and_the_network(lct18: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join("abcdefg") + "\n\n")
    options = ExportOptions(
        load=LoadOptions(groups=8, epsilon=1e-3),
        image_size=48,
        resize=50,
        interpolation="bicubic",
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        labels=labels,
    )
    manifest = export(lct18, tmp_path / "b", options)
    assert manifest.attention is not None
    assert (manifest.attention.groups, manifest.attention.epsilon) == (8, 1e-3)
    assert manifest.labels == tuple("abcdefg")
    assert manifest.input.preprocessing == Preprocessing(
        resize=50, crop=48, interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)
    )
    loaded = load_checkpoint(lct18, LoadOptions(groups=8, epsilon=1e-3))
    golden = open_bundle(tmp_path / "b").golden()
    with torch.inference_mode():
        classifier = ImageClassifier(loaded.model, manifest.input.preprocessing)
        logits = classifier(torch.tensor(golden.images)).numpy()
    np.testing.assert_allclose(golden.logits, logits, rtol=1e-4, atol=1e-4)


def test_a_bundle_carries_hashes_certificate_proof_and_command(demo_bundle: Path) -> None:
    manifest = json.loads((demo_bundle / "manifest.json").read_text())
    assert sorted(p.name for p in demo_bundle.iterdir()) == ["golden.npz", "manifest.json", "model.onnx"]
    assert manifest["artifacts"][0]["verified"] is True
    assert manifest["certificate"]["attention_blocks"] == 9
    report = manifest["parity"][0]
    assert report["failures"] == []
    assert report["logits"]["max_abs_error"] <= report["logits"]["max_abs_limit"]
    assert len(report["gates"]) == 9
    assert manifest["commands"] == ["lct-deploy export"]
