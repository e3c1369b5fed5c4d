"""Backbones: graphs that give c2 to c5 for images of any size, their proof, their bundle."""

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jsonschema
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

import exporters.backbone.export
from exporters.backbone.export import export_backbone, feature_maps
from exporters.backbone.graph import export_backbone_graph
from exporters.backbone.images import backbone_images, golden_images, parity_sizes
from exporters.backbone.options import BackboneOptions
from exporters.backbone.proof import torch_maps, verify_backbone
from exporters.functions import attention_function
from exporters.graph import ExportedGraph
from exporters.nodes import attention_nodes
from lct_deploy.architecture import FEATURES, FeatureName, model_config
from lct_deploy.bundle import BackboneBundle, open_any_bundle, open_bundle
from lct_deploy.checkpoint import CheckpointMetadata, LoadOptions, load_backbone, write_checkpoint
from lct_deploy.errors import BundleError, CheckpointError, DataError, ParityError, UsageError
from lct_deploy.manifest import AnySizeInput, BackboneManifest
from lct_deploy.models import Backbone, LinearContextTransform
from lct_deploy.models.classifier import ImageBackbone
from lct_deploy.parity import MAX_GATE_ERROR
from lct_deploy.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from lct_deploy.runtime import RuntimeOptions
from lct_deploy.runtime.backbone import BackboneRuntime
from lct_deploy.runtime.select import open_backbone
from lct_deploy.sample import DEMO_CHECKPOINT
from server.sources import scan
from tests.conftest import QuickCli, random_network
from tests.test_imports import HEAVY, ROOT, run_without

SPEC = AnySizeInput(mean=IMAGENET_MEAN, std=IMAGENET_STD)
QUICK = BackboneOptions(features=FEATURES, resize=32)


def noise(count: int, height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def assert_pytorchs(runtime: BackboneRuntime, backbone: ImageBackbone, images: NDArray[np.uint8]) -> None:
    maps = runtime.infer(images)
    expected = torch_maps(backbone, images)
    assert list(maps) == list(backbone.features)
    for name, values in maps.items():
        assert values.dtype == np.float32
        assert values.shape == expected[name].shape
        assert np.abs(values - expected[name]).max() <= 1e-4 * np.abs(expected[name]).max(), name


def export(source: Path, output: Path, options: BackboneOptions = QUICK) -> BackboneManifest:
    return export_backbone(source, output, options, command="lct-deploy export", announce=lambda _: None)


@pytest.fixture(scope="module")
def bundle(lct18: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("backbones") / "lct18"
    export(lct18, path)
    return path


@pytest.fixture(scope="module")
def opened(bundle: Path) -> BackboneBundle:
    found = open_any_bundle(bundle)
    assert isinstance(found, BackboneBundle)
    return found


@pytest.fixture(scope="module")
def network(lct18: Path) -> ImageBackbone:
    return ImageBackbone(load_backbone(lct18).model, IMAGENET_MEAN, IMAGENET_STD, FEATURES).eval()


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


def saved_graph(network: Backbone, names: tuple[FeatureName, ...], path: Path) -> ExportedGraph:
    features = feature_maps(network.config.family, names)
    graph = export_backbone_graph(network, SPEC, features, opset=20, metadata={})
    onnx.save(graph.model, path)
    return graph


@pytest.mark.parametrize("arch", ["lct_resnet26", "se_plus_resnet18", "resnet18"])
def test_every_kind_of_block_gives_pytorchs_maps_at_odd_sizes(arch: str, tmp_path: Path) -> None:
    torch.save(random_network(model_config(arch, num_classes=3)).state_dict(), tmp_path / "c.pt")
    network = load_backbone(tmp_path / "c.pt", LoadOptions(arch=arch)).model
    graph = saved_graph(network, FEATURES, tmp_path / "model.onnx")
    layers = list(network.attention_blocks())
    assert [block.layer for block in graph.certificate.fused] == layers
    assert len(attention_nodes(graph.model)) == graph.certificate.attention_blocks == len(layers)
    backbone = ImageBackbone(network, SPEC.mean, SPEC.std, FEATURES).eval()
    with closing(BackboneRuntime.open(tmp_path / "model.onnx", RuntimeOptions(threads=1))) as runtime:
        for height, width in ((64, 96), (75, 41), (33, 1), (1, 1)):
            assert_pytorchs(runtime, backbone, noise(2, height, width))


@settings(max_examples=15, deadline=None)
@given(count=st.integers(1, 3), height=st.integers(1, 150), width=st.integers(1, 150))
def test_any_size_and_batch(
    count: int, height: int, width: int, opened: BackboneBundle, network: ImageBackbone
) -> None:
    images = noise(count, height, width)
    with closing(open_backbone(opened, "onnxruntime", RuntimeOptions(threads=1))) as runtime:
        assert_pytorchs(runtime, network, images)
        maps = runtime.infer(images)
    for feature in opened.manifest.features:
        sides = (-(-height // feature.stride), -(-width // feature.stride))
        assert maps[feature.name].shape == (count, feature.channels, *sides)


def test_the_graph_names_its_maps_and_what_is_dynamic(opened: BackboneBundle) -> None:
    graph = onnx.load(opened.path / "model.onnx").graph

    def shapes(values: Any) -> dict[str, list[str | int]]:
        return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}

    assert shapes(graph.input) == {"image": ["N", "H", "W", 3]}
    assert shapes(graph.output) == {
        "c2": ["N", 64, "H4", "W4"],
        "c3": ["N", 128, "H8", "W8"],
        "c4": ["N", 256, "H16", "W16"],
        "c5": ["N", 512, "H32", "W32"],
    }
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert not [t.name for t in graph.initializer if "fc" in t.name]


def test_some_of_the_maps_in_the_order_asked_for_without_stages_that_they_do_not_need(
    lct18: Path, tmp_path: Path
) -> None:
    loaded = load_backbone(lct18, features=("c4", "c3"))
    assert list(loaded.model.attention_blocks())[-1] == "layer3.1.attn"
    assert any("layer4 is left out" in note for note in loaded.notes)
    graph = saved_graph(loaded.model, ("c4", "c3"), tmp_path / "model.onnx")
    assert [output.name for output in graph.model.graph.output] == ["c4", "c3"]
    assert graph.certificate.attention_blocks == len(graph.certificate.fused) == 6
    backbone = ImageBackbone(loaded.model, SPEC.mean, SPEC.std, ("c4", "c3")).eval()
    with closing(BackboneRuntime.open(tmp_path / "model.onnx", RuntimeOptions(threads=1))) as runtime:
        assert_pytorchs(runtime, backbone, noise(1, 37, 70))


def test_a_bundle_carries_its_maps_its_proof_and_its_assumptions(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert sorted(p.name for p in bundle.iterdir()) == ["golden.npz", "manifest.json", "model.onnx"]
    assert (manifest["kind"], manifest["arch"]) == ("backbone", "lct_resnet18")
    assert [(f["name"], f["channels"], f["stride"]) for f in manifest["features"]] == [
        ("c2", 64, 4),
        ("c3", 128, 8),
        ("c4", 256, 16),
        ("c5", 512, 32),
    ]
    assert manifest["certificate"]["attention_blocks"] == len(manifest["certificate"]["fused"]) == 8
    (report,) = manifest["parity"]
    assert report["failures"] == []
    assert [m["name"] for m in report["maps"]] == list(FEATURES)
    for measured in report["maps"]:
        assert 0 < measured["max_abs_error"] <= measured["max_abs_limit"]
        assert measured["min_cosine"] > 0.9999
    assert len(report["gates"]) == 8
    assert not any(gate["constant"] for gate in report["gates"])
    assert report["images"]["real"] + report["images"]["synthetic"] == 256
    notes = " ".join(manifest["source"]["notes"])
    for said in ("classifier is left out: fc.weight, fc.bias", "groups", "epsilon", "mean"):
        assert said in notes


def test_the_published_schema_describes_it(bundle: Path) -> None:
    schema = json.loads((ROOT / "docs" / "manifest.schema.json").read_text())
    manifest = json.loads((bundle / "manifest.json").read_text())
    jsonschema.validate(manifest, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**manifest, "kind": "classifier"}, schema)


def test_a_manifest_from_before_there_were_backbones_is_a_classifiers(
    demo_bundle: Path, tmp_path: Path
) -> None:
    old = Path(shutil.copytree(demo_bundle, tmp_path / "old"))
    manifest = json.loads((old / "manifest.json").read_text())
    assert manifest.pop("kind") == "classifier"
    (old / "manifest.json").write_text(json.dumps(manifest))
    assert open_bundle(old).manifest == open_bundle(demo_bundle).manifest
    jsonschema.validate(manifest, json.loads((ROOT / "docs" / "manifest.schema.json").read_text()))


def gate_error(x: NDArray[np.float32], *, by_rows: bool) -> float:
    """Of the function's gates in onnxruntime against the float64 attention's, for X (1, C, H, W)."""
    channels = x.shape[1]
    attention = LinearContextTransform(channels, 16, epsilon=1e-5, w_init=1.0).double()
    expected = attention.gate(torch.tensor(x).double()).detach().numpy()
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 20, "lct": 1]> '
        f"g (float[1,{channels},H,W] x, float[{channels}] w, float[{channels}] b)"
        f" => (float[1,{channels},H,W] y)"
        " { y = lct.LinearContextTransform <groups = 16, epsilon = 0.00001> (x, w, b) }"
    )
    model.functions.append(attention_function("LinearContextTransform", 20, by_rows=by_rows))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    ones = np.ones(channels, np.float32)
    y: Any = session.run(["y"], {"x": x, "w": ones, "b": ones})[0]
    return float(np.abs(y[:, :, 0, 0] / x[:, :, 0, 0] - expected).max())


def test_the_gate_of_a_large_flat_map_is_exact() -> None:
    """A mean that is added up pixel by pixel is not: its error is far over what a gate may be off."""
    flat = 0.7137 + 1e-3 * np.random.default_rng(0).standard_normal((1, 64, 1, 1))
    x = np.broadcast_to(flat, (1, 64, 200, 334)).astype(np.float32)
    assert gate_error(x, by_rows=True) < 1e-4 < MAX_GATE_ERROR["fp32"] < gate_error(x, by_rows=False)


def test_parity_meets_odd_sides_at_every_stage_and_each_size_with_real_images() -> None:
    sizes = parity_sizes(224)
    for stride in (1, 2, 4, 8, 16):
        assert {-(-side // stride) % 2 for size in sizes for side in size} == {0, 1}
    batches = list(backbone_images(None, 64).batches())
    assert sum(map(len, batches)) == 256
    assert {batch.shape[1:3] for batch in batches[:5]} == set(parity_sizes(64))
    assert len({image.shape for image in golden_images()}) == len(golden_images())


def test_images_of_ones_own_keep_their_proportions(tmp_path: Path) -> None:
    for number in range(256):
        size = [(60, 40), (40, 60), (400, 20), (33, 33)][number % 4]
        Image.new("RGB", size, (number, 0, 0)).save(tmp_path / f"{number:03}.png")
    images = backbone_images(tmp_path, 48)
    shapes = [batch.shape for batch in images.batches()]
    assert images.count == len(shapes) == images.source.real == 256
    assert shapes[:4] == [(1, 48, 72, 3), (1, 72, 48, 3), (1, 4, 80, 3), (1, 48, 48, 3)]
    (tmp_path / "000.png").unlink()
    with pytest.raises(DataError, match="holds 255"):
        backbone_images(tmp_path, 48)


def shift(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """`model`, a bias of the convolution called `name` moved."""
    (node,) = [node for node in model.graph.node if node.name == name]
    (bias,) = [t for t in model.graph.initializer if t.name == node.input[2]]
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 1.0, bias.name))
    return model


def test_a_wrong_map_is_named_and_those_before_it_are_not(
    bundle: Path, network: ImageBackbone, tmp_path: Path
) -> None:
    model = shift(onnx.load(bundle / "model.onnx"), "layer3.1.bn1/Conv")
    onnx.save(model, tmp_path / "model.onnx")
    report = verify_backbone(tmp_path / "model.onnx", network, backbone_images(None, 32))
    assert not report.passed
    assert [f.split(":")[0] for f in report.failures] == ["c4", "c5", "gates drift first in layer3.1.attn"]
    assert report.drifts_first == "layer3.1.attn"


def test_a_graph_that_is_not_pytorchs_is_not_written(lct18: Path, tmp_path: Path) -> None:
    honest = exporters.backbone.export.export_backbone_graph

    def wrong(*arguments: Any, **options: Any) -> ExportedGraph:
        graph = honest(*arguments, **options)
        return replace(graph, model=shift(graph.model, "layer1.0.bn1/Conv"))

    heard: list[str] = []
    with (
        patch("exporters.backbone.export.export_backbone_graph", wrong),
        pytest.raises(ParityError, match=r"does not agree with PyTorch, no bundle is written"),
    ):
        export_backbone(lct18, tmp_path / "b", QUICK, command="", announce=heard.append)
    assert not list(tmp_path.iterdir())
    assert "failure: c2: max |Δ|" in heard[-1]


def test_nan_is_counted(opened: BackboneBundle, copy: Path, quick_cli: QuickCli) -> None:
    golden = dict(np.load(copy / "golden.npz"))
    model = onnx.load(copy / "model.onnx")
    weight = next(t for t in model.graph.initializer if len(t.dims) == 4)
    weight.CopyFrom(onnx.numpy_helper.from_array(np.full(weight.dims, np.nan, np.float32), weight.name))
    onnx.save(model, copy / "model.onnx")
    rehash(copy)
    done = quick_cli("verify", copy)
    assert done.returncode == 1
    assert f"c2: {sum(golden[f'c2_{i}'].size for i in range(4))} values are NaN or infinite" in done.stderr


def rehash(bundle: Path) -> None:
    """Let the manifest name the files as they are."""
    from lct_deploy.atomic import sha256_file

    manifest = json.loads((bundle / "manifest.json").read_text())
    for record in (*manifest["artifacts"], manifest["golden"]):
        record["sha256"] = sha256_file(bundle / record["path"])
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_golden_maps_are_pytorchs(opened: BackboneBundle, network: ImageBackbone) -> None:
    for golden in opened.golden():
        expected = torch_maps(network, golden.image)
        for name, values in golden.maps.items():
            np.testing.assert_allclose(values, expected[name], rtol=1e-4, atol=1e-4)


def test_golden_maps_are_verified_without_torch_and_onnx(bundle: Path) -> None:
    code = (
        "import sys\nfrom lct_deploy.cli import main\n"
        f"sys.argv = ['lct-deploy', 'verify', {str(bundle)!r}, '--json']\nmain()"
    )
    done = run_without(HEAVY, code)
    assert done.returncode == 0, done.stderr
    maps = json.loads(done.stdout)
    assert [m["name"] for m in maps] == list(FEATURES)
    assert all(m["max_abs_error"] <= m["max_abs_limit"] for m in maps)


SPOILT: list[tuple[Callable[[Any], Any], str]] = [
    (lambda values: values * 1.01, "c3: max |Δ| is"),
    (lambda values: values[..., :-1], "has the shape"),
]


@pytest.mark.parametrize(("spoil", "message"), SPOILT, ids=["values", "shape"])
def test_golden_maps_that_differ_are_told(
    copy: Path, quick_cli: QuickCli, spoil: Callable[[Any], Any], message: str
) -> None:
    golden = dict(np.load(copy / "golden.npz"))
    golden["c3_1"] = spoil(golden["c3_1"])
    np.savez_compressed(copy / "golden.npz", allow_pickle=False, **golden)
    rehash(copy)
    done = quick_cli("verify", copy)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr


def test_verify_compares_with_the_checkpoint_and_with_no_other(
    bundle: Path, lct18: Path, quick_cli: QuickCli, tmp_path: Path
) -> None:
    done = quick_cli("verify", bundle, "--checkpoint", lct18)
    assert done.returncode == 0, done.stderr
    assert "PASSED" in done.stdout
    assert "c5: max |Δ|" in done.stdout
    torch.save(
        random_network(model_config("lct_resnet18", num_classes=2), seed=1).state_dict(), tmp_path / "o.pt"
    )
    done = quick_cli("verify", bundle, "--checkpoint", tmp_path / "o.pt")
    assert done.returncode == 2
    assert "is not the file that" in done.stderr


def test_inspect_says_what_it_is(bundle: Path, quick_cli: QuickCli) -> None:
    done = quick_cli("inspect", bundle)
    assert done.returncode == 0
    assert "a backbone, no classifier: c2 (64 channels, stride 4), c3" in done.stdout
    assert "of any height and width" in done.stdout
    done = quick_cli("inspect", bundle, "--json")
    assert json.loads(done.stdout) == json.loads((bundle / "manifest.json").read_text())


def test_a_changed_file_is_refused_with_the_command_that_rebuilds_it(copy: Path) -> None:
    (copy / "golden.npz").write_bytes(b"")
    with pytest.raises(BundleError, match=r"golden\.npz has changed[\s\S]*--features c2,c3,c4,c5"):
        open_any_bundle(copy)


@pytest.mark.parametrize(
    "arguments",
    [
        ("predict", "photo.jpg"),
        ("serve",),
        ("bench",),
        ("compile", "--runtime", "onnxruntime"),
        ("compile", "--runtime", "tensorrt-rtx"),
    ],
    ids=" ".join,
)
def test_what_takes_classifiers_refuses_it(
    bundle: Path, quick_cli: QuickCli, arguments: tuple[str, ...]
) -> None:
    command, *rest = arguments
    done = quick_cli(command, bundle, *rest)
    assert done.returncode == 2
    assert "a backbone (c2, c3, c4, c5 of lct_resnet18), not a classifier" in done.stderr
    assert "docs/backbone.md" in done.stderr


def test_a_repository_serves_the_classifiers_beside_it(
    bundle: Path, demo_bundle: Path, tmp_path: Path
) -> None:
    for path in (bundle, demo_bundle):
        (tmp_path / path.name).symlink_to(path)
    sources, broken = scan([tmp_path])
    assert [source.name for source in sources] == ["demo"]
    assert [(bad.name, "not a classifier" in bad.reason) for bad in broken] == [("lct18", True)]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--bisect",), "nothing to bisect"),
        (("--runtime", "tensorrt"), "tensorrt does not run backbones"),
        (("--runtime", "nonsense"), "unknown runtime"),
        (("--provider", "tensorrt"), "an engine for each size"),
        (("--precision", "fp16"), "holds no fp16 graph"),
        (("--precision", "fp16", "--checkpoint", "c.pt"), "holds no fp16 graph"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_verify_refuses_what_a_backbone_does_not_have(
    bundle: Path, quick_cli: QuickCli, flags: tuple[str, ...], message: str
) -> None:
    done = quick_cli("verify", bundle, *flags)
    assert done.returncode in (1, 2)
    assert message in done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--features", "c2,c6"), "'c2,c6' is not a list of maps"),
        (("--features", "c2,c2"), "each once"),
        (("--labels", "l.txt", "--num-classes", "7"), "--num-classes, --labels: of classifiers"),
        (("--image-size", "224"), "takes images of any size"),
        (("--calib-data", "photos"), "--calib-data: of classifiers"),
        (("--precision", "fp16"), "there is no fp16 backbone"),
        (("--for", "tensorrt"), "needs images of one size"),
        (("--resize", "8"), "resize: "),
        (("--opset", "17"), "opset 17 is not supported"),
        (("--std", "0,1,1"), "std must be positive"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_export_refuses_what_a_backbone_does_not_have(
    lct18: Path, quick_cli: QuickCli, tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    features = () if "--features" in flags else ("--features", "c2,c3,c4,c5")
    done = quick_cli("export", lct18, "-o", tmp_path / "b", *features, *flags)
    assert done.returncode == 2
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_network_for_small_images_has_no_such_maps(quick_cli: QuickCli, tmp_path: Path) -> None:
    done = quick_cli("export", DEMO_CHECKPOINT, "-o", tmp_path / "b", "--features", "c2")
    assert done.returncode == 2
    assert "lct_resnet20 gives no c2 to c5: its stages are at strides 1, 2 and 4" in done.stderr


def test_an_onnx_file_is_refused(quick_cli: QuickCli, bundle: Path, tmp_path: Path) -> None:
    done = quick_cli("export", bundle / "model.onnx", "-o", tmp_path / "b", "--features", "c2")
    assert done.returncode == 2
    assert "--features takes a checkpoint" in done.stderr


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((1, 0, 8, 3), np.uint8),
        np.zeros((1, 3, 8, 8), np.uint8),
    ],
)
def test_other_inputs_are_refused(opened: BackboneBundle, images: Any) -> None:
    with (
        closing(open_backbone(opened, "onnxruntime", RuntimeOptions(threads=1))) as runtime,
        pytest.raises(UsageError, match=r"expected uint8 images of shape \(N, H, W, 3\)"),
    ):
        runtime.infer(images)


def test_mean_and_std_are_the_checkpoints_own_or_the_flags(tmp_path: Path, lct18: Path) -> None:
    config = model_config("lct_resnet18", num_classes=2, groups=8)
    own = Preprocessing(resize=40, crop=32, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    metadata = CheckpointMetadata(model=config, labels=("a", "b"), preprocessing=own)
    path = tmp_path / "own.safetensors"
    write_checkpoint(path, random_network(config).state_dict(), metadata)
    manifest = export(path, tmp_path / "own")
    assert (manifest.input.mean, manifest.input.std) == (own.mean, own.std)
    assert manifest.attention is not None
    assert manifest.attention.groups == 8
    assert manifest.source.notes == ("the classifier is left out: fc.bias, fc.weight",)
    with pytest.raises(CheckpointError, match=r"--mean .* contradicts"):
        export(path, tmp_path / "other", BackboneOptions(features=FEATURES, mean=(0.5, 0.5, 0.5)))
    assert not (tmp_path / "other").exists()
