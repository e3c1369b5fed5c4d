"""Graphs rewritten for a runtime and a precision: the same answers, or no bundle and a reason."""

import dataclasses
import json
import re
from collections.abc import Callable, Generator
from contextlib import closing
from functools import cache
from pathlib import Path
from unittest.mock import Mock, patch

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto
from PIL import Image

from exporters.from_checkpoint import prepare_checkpoint
from exporters.functions import with_layer_normalization
from exporters.gates import read_gates
from exporters.half import emulate, to_half
from exporters.images import parity_images
from exporters.nodes import attention_nodes
from exporters.options import CalibrationOptions, ExportOptions, Target
from exporters.prepared import Prepared
from exporters.quantization.calibration import calibrate
from exporters.quantization.histogram import DEFAULT_METHOD
from exporters.quantization.qdq import quantize
from exporters.spelling import spell_out
from exporters.variants import CALIBRATED, TARGETS
from lct_deploy import parity
from lct_deploy.bundle import open_bundle
from lct_deploy.golden import check_golden
from lct_deploy.manifest import Precision
from lct_deploy.runtime import RuntimeOptions, open_bundled
from lct_deploy.sample import DEMO_CHECKPOINT, load_sample
from tests.conftest import QuickCli, export
from tests.test_host_layout import (
    FP32,
    GATE,
    GROUPS_20,
    IMAGES,
    LIMIT,
    error,
    fp32,
    in_float64,
    network,
    noise,
    regrouped,
    resized,
    sqnr,
    tied_graph,
    with_groups,
)

# Those for OpenVINO, which runs in processes of its own: tests/test_openvino.py.
COMBINATIONS = [
    (precision, target)
    for precision, targets in TARGETS.items()
    for target in targets
    if target != "openvino"
]
NETWORKS = [("lct_resnet20", 32), ("se_resnet18", 47), ("se_plus_resnet26", 65), ("lct_resnet26", 64)]


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare_checkpoint(DEMO_CHECKPOINT, ExportOptions())


@pytest.fixture(scope="module", autouse=True)
def trace_once(prepared: Prepared) -> Generator[None]:
    """One trace of the shipped checkpoint and one pass of PyTorch serve all exports here."""
    proof = prepared.prove(parity_images(prepared.preprocessing, None, prepared.labels))
    once = dataclasses.replace(prepared, prove=Mock(return_value=proof))
    with patch("exporters.from_checkpoint.prepare_checkpoint", return_value=once):
        yield


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 images of the sample's kind, none of which parity is measured on."""
    return save_images(tmp_path_factory.mktemp("calibration"), 64)


def save_images(directory: Path, count: int, *, mirror: bool = True) -> Path:
    for index, image in enumerate(load_sample().images[:count]):
        Image.fromarray(image[:, ::-1] if mirror else image).save(directory / f"{index:03}.png")
    return directory


def run(model: ModelProto, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"image": images})[0])


def gates_of(model: ModelProto, images: np.ndarray, directory: Path) -> dict[str, np.ndarray]:
    onnx.save(model, directory / "gates.onnx")
    return dict(read_gates(directory / "gates.onnx", images, batch=2))


# Every variant of the shipped checkpoint


@pytest.mark.parametrize(("precision", "target"), COMBINATIONS)
def test_every_combination_exports_and_is_proven(
    precision: Precision, target: Target, mirrored: Path, tmp_path: Path
) -> None:
    calibration = CalibrationOptions(data=str(mirrored)) if precision in CALIBRATED else CalibrationOptions()
    options = ExportOptions(precision=precision, target=target, calibration=calibration)
    manifest = export(DEMO_CHECKPOINT, tmp_path / "demo", options)
    paths = ["model.onnx"]
    if (precision, target) != ("fp32", "portable"):
        paths.append(f"{precision}-{target}.onnx")
        variant = manifest.artifacts[1]
        assert (variant.kind, variant.runtime, variant.precision) == ("graph", target, precision)
        assert (variant.source, variant.verified) == ("model.onnx", True)
    assert [artifact.path for artifact in manifest.artifacts] == paths
    assert sorted(entry.name for entry in (tmp_path / "demo").iterdir()) == sorted(
        [*paths, "golden.npz", "manifest.json"]
    )
    assert manifest.precision == precision
    assert [(r.artifact, r.precision) for r in manifest.parity] == list(
        zip(paths, ("fp32", precision), strict=False)
    )
    for report in manifest.parity:
        assert report.passed
        assert len(report.gates) == 9
        assert report.logits.top1_agreement >= 0.98
        assert report.accuracy is not None
    warned = any("no bf16 on CPUs" in warning for warning in manifest.parity[-1].warnings)
    assert warned == (precision == "bf16")
    calibrated = any("calibrated on 64 images" in note for note in manifest.source.notes)
    assert calibrated == (precision in CALIBRATED)
    assert_graph_suits(onnx.load(tmp_path / "demo" / paths[-1]), precision, target)
    if target != "tensorrt" and precision != "bf16":
        bundle = open_bundle(tmp_path / "demo")
        with closing(open_bundled(bundle, "onnxruntime", RuntimeOptions(threads=1))) as runtime:
            assert runtime.spec.precision == precision
            check_golden(bundle, runtime)


def assert_graph_suits(model: ModelProto, precision: Precision, target: Target) -> None:
    """It is valid, says its precision, and has no more custom nodes than its runtime can read."""
    onnx.checker.check_model(model, full_check=True)
    named = {entry.key: entry.value for entry in model.metadata_props}
    assert named.get("lct.precision", "fp32") == precision
    assert named["lct.arch"] == "lct_resnet20"
    domains = {node.domain for node in model.graph.node}
    assert domains == ({""} if target == "tensorrt" else {"", "lct"})
    assert len(model.functions) == (0 if target == "tensorrt" else 1)
    (image,), (logits,) = model.graph.input, model.graph.output
    assert (image.name, logits.name) == ("image", "logits")
    assert image.type.tensor_type.shape.dim[0].dim_param


@pytest.mark.parametrize(
    ("precision", "target"), [("fp32", "portable"), ("fp16", "portable"), ("int8", "onnxruntime")]
)
def test_from_the_command_line_with_the_default_target(
    quick_cli: QuickCli, precision: str, target: str, mirrored: Path, tmp_path: Path
) -> None:
    calibration = ["--calib-data", mirrored, "--calib-images", 64, "--calib-method", "min-max"]
    done = quick_cli(
        "export", DEMO_CHECKPOINT, "-o", tmp_path / "demo", "--precision", precision, "--json",
        *(calibration if precision == "int8" else []),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)
    assert manifest["artifacts"][-1]["runtime"] == target
    assert manifest["precision"] == precision
    assert "FAILED" not in done.stderr


# What cannot be exported


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "int8"], "--calib-data DIR, or fashion-mnist"),
        (["--precision", "int8", "--calib-images", "64"], "--calib-data"),
        (["--precision", "int8", "--for", "portable"], "--for onnxruntime or tensorrt"),
        (["--precision", "fp8"], "--calib-data DIR, or fashion-mnist"),
        (["--precision", "fp8", "--for", "onnxruntime"], "--for tensorrt"),
        (["--precision", "tf32"], "lct-deploy compile BUNDLE --precision tf32"),
        (["--calib-data", "MIRRORED"], "--precision int8 or fp8"),
        (["--calib-images", "64"], "--precision int8"),
        (["--calib-method", "entropy"], "--precision int8"),
        (["--precision", "fp16", "--calib-data", "MIRRORED"], "--precision int8"),
        (["--precision", "int8", "--calib-data", "nowhere"], "nowhere: no such directory"),
        (["--precision", "int8", "--calib-data", "FEW"], "holds 63 JPEG, PNG or WebP images"),
        (["--precision", "int8", "--calib-data", "EMPTY"], "holds 0"),
        (["--precision", "int8", "--calib-data", "MIRRORED", "--calib-images", "65"], "--calib-images 64"),
        (["--precision", "int8", "--calib-data", "MIRRORED", "--calib-images", "63"], "images"),
        (["--precision", "int8", "--calib-data", "MIRRORED", "--calib-method", "guess"], "method"),
        (["--precision", "int8", "--calib-data", "SEEN"], "are left for calibration, which needs 64"),
        (["--precision", "int8", "--calib-data", "BROKEN"], "063.png"),
        (["--precision", "int4"], "precision"),
        (["--precision", "fp16", "--for", "tvm"], "target"),
    ],
)  # fmt: skip
def test_what_cannot_be_exported_exits_2_and_writes_nothing(
    quick_cli: QuickCli, mirrored: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    few, empty, seen, broken = (tmp_path / name for name in ("few", "empty", "seen", "broken"))
    for directory in (few, empty, seen, broken):
        directory.mkdir()
    save_images(few, 63)
    save_images(seen, 70, mirror=False)
    save_images(broken, 64)
    (broken / "063.png").write_bytes((broken / "063.png").read_bytes()[:60])
    places = {"MIRRORED": mirrored, "FEW": few, "EMPTY": empty, "SEEN": seen, "BROKEN": broken}
    before = sorted(tmp_path.iterdir())
    done = quick_cli(
        "export", DEMO_CHECKPOINT, "-o", tmp_path / "bundle", *[places.get(a, a) for a in arguments]
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_variant_that_disagrees_is_not_written(
    quick_cli: QuickCli, demo_bundle: Path, tmp_path: Path, overwrite: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is out of reach, so that any graph fails; what is there already stays."""
    monkeypatch.setattr(parity, "MIN_TOP1_AGREEMENT", {"fp16": 1.01})
    output = tmp_path / "bundle"
    if overwrite:
        export(DEMO_CHECKPOINT, output)
    before = {path.name: path.read_bytes() for path in output.glob("*")}
    done = quick_cli(
        "export", DEMO_CHECKPOINT, "-o", output, "--precision", "fp16", *(["--overwrite"] * overwrite)
    )
    assert done.returncode == 1
    assert "fp16-portable.onnx does not agree with PyTorch" in done.stderr
    assert re.search(r"fp16: RMS logit error .*\n.*\(PyTorch [\w.]+\): alone it causes", done.stderr)
    assert {path.name: path.read_bytes() for path in output.glob("*")} == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"] * overwrite


# The attention in standard operators


@cache
def spelled(arch: str, size: int) -> ModelProto:
    return spell_out(fp32(arch, size))


@pytest.mark.parametrize(("arch", "size"), NETWORKS)
def test_spelled_out_logits_and_gates_are_those_of_float64(arch: str, size: int, tmp_path: Path) -> None:
    images = np.concatenate([kind(1, size) for kind in IMAGES])
    reference, gates = in_float64(network(arch), images)
    assert error(run(fp32(arch, size), images), run(spelled(arch, size), images)) < FP32
    assert error(reference, run(spelled(arch, size), images)) < FP32
    read = gates_of(spelled(arch, size), images, tmp_path)
    assert sorted(read) == sorted(gates)
    for layer, values in gates.items():
        assert np.abs(read[layer] - values).max() < GATE, layer


@pytest.mark.parametrize(("arch", "size"), NETWORKS)
def test_spelled_out_graphs_have_standard_operators_alone(arch: str, size: int) -> None:
    model = spelled(arch, size)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert {e.key: e.value for e in model.metadata_props} == {
        e.key: e.value for e in fp32(arch, size).metadata_props
    }


def test_spelling_leaves_its_source_alone() -> None:
    model = fp32("lct_resnet20", 32)
    before = model.SerializeToString(deterministic=True)
    spell_out(model)
    with_layer_normalization(model)
    assert model.SerializeToString(deterministic=True) == before


@settings(max_examples=15, deadline=None)
@given(
    groups=st.sampled_from(GROUPS_20),
    size=st.tuples(st.integers(4, 45), st.integers(4, 45)),
    batch=st.integers(1, 5),
    kind=st.sampled_from(IMAGES),
    rewrite=st.sampled_from([spell_out, with_layer_normalization]),
)
def test_any_groups_resolution_batch_and_image(
    groups: int,
    size: tuple[int, int],
    batch: int,
    kind: Callable[[int, int], np.ndarray],
    rewrite: Callable[[ModelProto], ModelProto],
) -> None:
    model = resized(regrouped(fp32("lct_resnet20", 32), groups), *size)
    images = kind(batch, max(size))[:, : size[0], : size[1]]
    reference, _ = in_float64(with_groups(network("lct_resnet20"), groups), images)
    assert error(reference, run(rewrite(model), images)) < LIMIT


@pytest.mark.parametrize("scale", [0.0, 3e-3, None])
@pytest.mark.parametrize("rewrite", [spell_out, with_layer_normalization])
def test_groups_of_hardly_any_variance(
    rewrite: Callable[[ModelProto], ModelProto], scale: float | None
) -> None:
    source, model = tied_graph("lct_resnet20", 32, scale)
    images = np.concatenate([kind(2, 32) for kind in IMAGES])
    reference, _ = in_float64(source, images)
    assert error(reference, run(rewrite(model), images)) < LIMIT


@pytest.mark.parametrize("arch", ["lct_resnet20", "se_resnet18", "se_plus_resnet26"])
def test_spelled_out_in_half_and_in_eight_bits(arch: str, tmp_path: Path) -> None:
    size = dict(NETWORKS)[arch]
    images = noise(4, size, 1)
    half = to_half(fp32(arch, size), "fp16")
    spelled, expected = run(emulate(spell_out(half)), images), run(emulate(half), images)
    # Which of two halves a sum is rounded to depends on the processor's order of adding.
    np.testing.assert_allclose(spelled, expected, rtol=0.02, atol=0.002 * np.abs(expected).max())
    assert sorted(gates_of(spell_out(half), images, tmp_path)) == sorted(gates_of(half, images, tmp_path))
    calibration = calibrate(fp32(arch, size), np.split(noise(16, size), 4), DEFAULT_METHOD, total=4)
    int8 = quantize(fp32(arch, size), calibration, "tensorrt")
    assert sqnr(run(int8, images), run(spell_out(int8), images)) > 20


# The shorter body


@pytest.mark.parametrize(("arch", "size"), NETWORKS[:3])
def test_the_shorter_body_gives_the_same_logits_and_gates(arch: str, size: int, tmp_path: Path) -> None:
    model = fp32(arch, size)
    short = with_layer_normalization(model)
    onnx.checker.check_model(short, full_check=True)
    images = np.concatenate([kind(1, size) for kind in IMAGES])
    reference, gates = in_float64(network(arch), images)
    assert error(reference, run(short, images)) < FP32
    for layer, values in gates_of(short, images, tmp_path).items():
        assert np.abs(values - gates[layer]).max() < GATE, layer
    assert [n.name for n in attention_nodes(short)] == [n.name for n in attention_nodes(model)]
    normalized = [node.op_type for f in short.functions for node in f.node].count("LayerNormalization")
    assert normalized == arch.startswith("lct")
    assert sum(len(f.node) for f in short.functions) <= sum(len(f.node) for f in model.functions)


def test_the_shorter_body_of_the_shorter_body_is_itself() -> None:
    short = with_layer_normalization(fp32("lct_resnet20", 32))
    assert with_layer_normalization(short).SerializeToString(deterministic=True) == short.SerializeToString(
        deterministic=True
    )
