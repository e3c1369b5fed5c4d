"""Verification notices every kind of wrong answer, and says so before anything is promoted."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from PIL import Image

from exporters.images import ParityImages, parity_images, synthetic_images
from exporters.options import ExportOptions
from exporters.proof import Proof, verify_artifact
from exporters.verify import prove, verify_bundle
from lct_deploy.architecture import model_config
from lct_deploy.bundle import open_bundle
from lct_deploy.checkpoint import load_checkpoint
from lct_deploy.errors import CheckpointError, DataError, ParityError
from lct_deploy.manifest import Accuracy, GateParity, LogitParity, Precision
from lct_deploy.models import build_model
from lct_deploy.models.resnet import calibrate_batch_norm
from lct_deploy.parity import (
    accuracy_failures,
    compare_gates,
    compare_logits,
    first_drift,
    logit_failures,
    logit_limit,
)
from lct_deploy.report import describe_parity
from lct_deploy.sample import DEMO_CHECKPOINT
from tests.conftest import QuickCli, export

Sabotage = Callable[[onnx.ModelProto], None]


@pytest.fixture(scope="module")
def proof(demo_bundle: Path) -> Proof:
    manifest = open_bundle(demo_bundle).manifest
    loaded = load_checkpoint(DEMO_CHECKPOINT)
    images = parity_images(manifest.input.preprocessing, None, manifest.labels)
    return prove(loaded.model, manifest.input.preprocessing, images)


def sabotage(bundle: Path, target: Path, change: Sabotage) -> Path:
    model = onnx.load(bundle / "model.onnx")
    change(model)
    onnx.save(model, target)
    return target


def initializer(model: onnx.ModelProto, ending: str) -> onnx.TensorProto:
    return next(t for t in model.graph.initializer if t.name.endswith(ending))


def replace(tensor: onnx.TensorProto, values: np.ndarray) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def fc_scaled(factor: float) -> Sabotage:
    def change(model: onnx.ModelProto) -> None:
        tensor = initializer(model, "fc.weight")
        replace(tensor, (numpy_helper.to_array(tensor) * factor).astype(np.float32))

    return change


def other_groups(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "groups":
                attribute.i = 2


def nan_weight(model: onnx.ModelProto) -> None:
    tensor = initializer(model, "fc.weight")
    values = numpy_helper.to_array(tensor).copy()
    values[3] = np.nan
    replace(tensor, values)


def test_the_exported_graph_passes_with_every_measure(demo_bundle: Path, proof: Proof) -> None:
    report = verify_artifact(demo_bundle / "model.onnx", "fp32", proof)
    assert report.passed
    assert report.images.real == 512
    assert report.images.synthetic == 32
    assert report.logits.top1_agreement == report.logits.top5_agreement == 1.0
    assert report.logits.min_cosine > 0.999999
    assert report.accuracy is not None
    assert report.accuracy.artifact_top1 == report.accuracy.reference_top1 > 90
    assert [gate.layer for gate in report.gates] == [
        f"layer{s}.{b}.attn" for s in (1, 2, 3) for b in range(3)
    ]
    for gate in report.gates:
        assert gate.max_abs_error < 1e-5
        assert gate.rank_correlation is not None
        assert gate.rank_correlation > 0.999
        assert gate.nan == 0
        assert not gate.constant


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (fc_scaled(1.001), "over the limit"),
        (fc_scaled(-1.0), "top-1 differs"),
        (other_groups, "over the limit"),
        (nan_weight, "NaN or infinite"),
    ],
)
def test_a_wrong_graph_fails(
    demo_bundle: Path, proof: Proof, tmp_path: Path, change: Sabotage, message: str
) -> None:
    broken = sabotage(demo_bundle, tmp_path / "model.onnx", change)
    report = verify_artifact(broken, "fp32", proof)
    assert not report.passed
    assert message in " ".join(report.failures)


def test_an_export_whose_graph_disagrees_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one place where an error has to be planted: a correct exporter gives no wrong graph."""
    import exporters.from_checkpoint as module

    honest = module.export_graph

    def wrong(*args: object, **kwargs: object) -> object:
        graph = honest(*args, **kwargs)  # pyright: ignore[reportArgumentType]
        other_groups(graph.model)
        return graph

    monkeypatch.setattr(module, "export_graph", wrong)
    with pytest.raises(ParityError, match="no bundle is written"):
        export(DEMO_CHECKPOINT, tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def test_an_untrained_checkpoint_is_warned_about(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_model(model_config("lct_resnet20", num_classes=3))
    calibrate_batch_norm(network, [torch.randn(8, 3, 28, 28)])
    torch.save(network.state_dict(), tmp_path / "untrained.pt")
    manifest = export(tmp_path / "untrained.pt", tmp_path / "bundle")
    report = manifest.parity[0]
    assert report.passed
    assert all(gate.constant and gate.rank_correlation is None for gate in report.gates)
    assert "constant in 9 of 9" in report.warnings[0]


def pngs(directory: Path, count: int) -> Path:
    directory.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        Image.fromarray(rng.integers(0, 256, (30, 41, 3), dtype=np.uint8)).save(directory / f"{index}.png")
    return directory


def test_parity_on_the_users_own_images(demo_bundle: Path, tmp_path: Path) -> None:
    (report,) = verify_bundle(
        open_bundle(demo_bundle), DEMO_CHECKPOINT, pngs(tmp_path / "images", 256), "onnxruntime"
    )
    assert report.passed
    assert (report.images.real, report.images.synthetic) == (256, 0)
    assert report.accuracy is None


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    images = pngs(tmp_path / "images", 3)
    with pytest.raises(DataError, match=r"holds 3 .* parity needs 256"):
        export(DEMO_CHECKPOINT, tmp_path / "bundle", ExportOptions(images=images))
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_is_not_compared_with_another_checkpoint(demo_bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    shutil.copy(DEMO_CHECKPOINT, other)
    data = bytearray(other.read_bytes())
    data[-1] ^= 1
    other.write_bytes(data)
    with pytest.raises(CheckpointError, match="not the file"):
        verify_bundle(open_bundle(demo_bundle), other, None, "onnxruntime")


def test_the_cli_verifies_against_golden_logits_and_checkpoint(
    quick_cli: QuickCli, demo_bundle: Path
) -> None:
    golden = quick_cli("verify", demo_bundle, "--json")
    assert golden.returncode == 0
    assert LogitParity.model_validate_json(golden.stdout).top1_agreement == 1.0
    full = quick_cli("verify", demo_bundle, "--checkpoint", DEMO_CHECKPOINT, "--json")
    assert full.returncode == 0
    assert [report["failures"] for report in json.loads(full.stdout)] == [[]]


def test_synthetic_images_are_many_kinds_and_always_the_same() -> None:
    images = synthetic_images(28)
    assert images.shape == (32, 28, 28, 3)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, synthetic_images(28))
    assert len({image.tobytes() for image in images}) == 32
    assert (images[0] == 0).all()
    assert (images[1] == 255).all()


def test_labels_count_only_where_the_classes_are_the_samples(proof: Proof) -> None:
    from lct_deploy.preprocessing import Preprocessing

    images: ParityImages = parity_images(Preprocessing(resize=28, crop=28), None, ("a", "b"))
    assert images.labels is None
    assert proof.images.labels is not None


def test_logit_measures_on_numbers_worked_out_by_hand() -> None:
    reference = np.array([[1.0, 0.0], [0.0, 3.0]], np.float32)
    logits = np.array([[1.0, 1.5], [0.0, 3.0]], np.float32)
    parity = compare_logits(reference, logits, logit_limit(reference, "fp32"))
    assert parity.max_abs_error == 1.5
    assert parity.max_abs_limit == pytest.approx(3e-4)
    assert parity.max_rel_error == 0.5
    assert parity.min_cosine == pytest.approx(1 / np.sqrt(1 + 1.5**2))
    assert parity.top1_agreement == 0.5
    assert parity.top5_agreement == 1.0
    assert [(f.image, f.reference, f.artifact, f.margin) for f in parity.flips] == [(0, 0, 1, 1.0)]
    p, q = np.exp([1, 0]) / np.exp([1, 0]).sum(), np.exp([1, 1.5]) / np.exp([1, 1.5]).sum()
    assert parity.max_kl == pytest.approx((p * np.log(p / q)).sum())
    assert len(logit_failures(parity, "fp32")) == 2  # over the limit, and a margin of 1 turned


def test_a_flip_is_a_failure_only_where_the_margin_is_clear() -> None:
    base = np.array([[5.0, 5.0 - 1e-4, 0.0]], np.float32)
    near = compare_logits(base, base + np.array([[-1e-4, 1e-4, 0]], np.float32), 5e-4)
    assert len(near.flips) == 1
    assert logit_failures(near, "fp32") == []
    clear = compare_logits(np.array([[9.0, 1.0]], np.float32), np.array([[1.0, 9.0]], np.float32), 9e-4)
    assert "top-1 differs on 1 images" in logit_failures(clear, "fp32")[1]


@pytest.mark.parametrize(("precision", "flips", "passes"), [
    ("fp16", 1, True), ("fp16", 2, False), ("bf16", 2, False), ("int8", 5, True), ("int8", 6, False),
])  # fmt: skip
def test_low_precisions_pass_by_their_share_of_equal_top1s(
    precision: Precision, flips: int, passes: bool
) -> None:
    reference = np.tile(np.array([[1.0, 0.0]], np.float32), (256, 1))
    logits = reference.copy()
    logits[:flips] = [0.0, 1.0]
    parity = compare_logits(reference, logits, logit_limit(reference, precision))
    assert parity.max_abs_limit is None
    assert (logit_failures(parity, precision) == []) == passes


def test_int8_may_lose_half_a_point_of_accuracy() -> None:
    half = Accuracy(reference_top1=90.0, artifact_top1=89.5, images=1000)
    more = Accuracy(reference_top1=90.0, artifact_top1=89.4, images=1000)
    assert accuracy_failures(half, "int8") == []
    assert "falls by 0.60 points" in accuracy_failures(more, "int8")[0]
    assert accuracy_failures(more, "fp32") == []  # its logits say more


def gate_of_one_block_shifted(by: float) -> Sabotage:
    """A bias of layer2.1's attention is another, in one channel."""

    def change(model: onnx.ModelProto) -> None:
        tensor = initializer(model, "layer2.1.attn.inputs.1")
        values = numpy_helper.to_array(tensor).copy()
        values[0] += by
        replace(tensor, values)

    return change


def test_a_gate_that_drifts_fails_in_fp32_though_its_logits_pass(
    demo_bundle: Path, proof: Proof, tmp_path: Path
) -> None:
    broken = sabotage(demo_bundle, tmp_path / "model.onnx", gate_of_one_block_shifted(3e-3))
    report = verify_artifact(broken, "fp32", proof)
    assert report.drifts_first == "layer2.1.attn"
    assert [failure.split(":")[0] for failure in report.failures] == ["gates drift first in layer2.1.attn"]
    assert "first to drift: layer2.1.attn" in describe_parity(report)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_a_gate_that_drifts_is_a_warning_in_lower_precisions(
    demo_bundle: Path, proof: Proof, tmp_path: Path, precision: Precision
) -> None:
    slightly = sabotage(demo_bundle, tmp_path / "model.onnx", gate_of_one_block_shifted(3e-3))
    report = verify_artifact(slightly, precision, proof)
    assert (report.drifts_first, report.warnings) == (None, ())
    assert "none drifts" in describe_parity(report)
    report = verify_artifact(
        sabotage(demo_bundle, tmp_path / "model.onnx", gate_of_one_block_shifted(1.0)), precision, proof
    )
    assert report.drifts_first == "layer2.1.attn"
    assert report.warnings[-1].startswith("gates drift first in layer2.1.attn: max error")
    assert not any("drift" in failure for failure in report.failures)


def test_the_first_block_in_graph_order_is_named_not_the_worst() -> None:
    gates = [gate("a", 4e-4), gate("b", 6e-4), gate("c", 0.1), gate("d", 0.0, nan=1)]
    assert first_drift(gates, "fp32") == gates[1]
    assert first_drift(gates, "int8") == gates[2]
    assert first_drift([gates[0], gates[3]], "int8") == gates[3]
    assert first_drift(gates[:1], "fp32") is None
    assert first_drift([], "fp32") is None


def gate(layer: str, error: float, nan: int = 0) -> GateParity:
    return GateParity(
        layer=layer, max_abs_error=error, rank_correlation=1.0, saturated=0.0, nan=nan, constant=False
    )


def test_gate_measures_on_numbers_worked_out_by_hand() -> None:
    reference = np.array([[0.1, 0.5, 0.9], [0.2, 0.4, 0.6]])
    gates = np.array([[0.1, 0.9, 0.5], [0.2, 0.4, 0.6]], np.float32)
    parity = compare_gates("layer1.0.attn", reference, gates)
    assert parity.max_abs_error == pytest.approx(0.4)
    assert parity.rank_correlation == pytest.approx(0.5)
    assert parity.saturated == 0
    broken = compare_gates("x", reference, np.array([[np.nan, 0.5, 0.9], [0.2, 0.4, 1.0]], np.float32))
    assert broken.nan == 1
    assert broken.saturated == pytest.approx(1 / 6)
