"""OpenVINO as a runtime: its graphs, their types on the processor, batches, refusals, serving with it."""

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, numpy_helper

import exporters.openvino
import lct_deploy.runtime.openvino
from benchmarks.floors import node_operations
from benchmarks.openvino_layers import Profiled
from exporters.functions import DOMAIN
from exporters.gates import read_gates
from exporters.graph import export_graph
from exporters.half import emulate, to_half
from exporters.hybrids import Hybrids
from exporters.openvino import spell_for_openvino
from exporters.options import CalibrationOptions, ExportOptions
from exporters.reference import compute_reference
from lct_deploy.architecture import model_config
from lct_deploy.bundle import open_bundle
from lct_deploy.errors import BundleError, RuntimeUnavailableError
from lct_deploy.golden import check_golden
from lct_deploy.manifest import Precision
from lct_deploy.models import ResNet
from lct_deploy.models.classifier import ImageClassifier
from lct_deploy.parity import MAX_GATE_ERROR, compare_gates
from lct_deploy.preprocessing import Preprocessing
from lct_deploy.runtime import RuntimeOptions, open_artifact, open_bundled
from lct_deploy.runtime.openvino import capabilities, compile_graph, read_graph
from lct_deploy.sample import DEMO_CHECKPOINT
from tests.conftest import Cli, QuickCli, export, random_network
from tests.serving import Server, classify, encoded

SIZE = 64
PREPROCESSING = Preprocessing(resize=SIZE, crop=SIZE)
HAS_BF16 = "BF16" in capabilities()
PRECISIONS: list[Precision] = ["fp32", "int8", *(["bf16"] if HAS_BF16 else [])]
FAMILIES = ["lct_resnet26", "lct_resnet18", "se_resnet26", "se_plus_resnet18", "resnet18"]


@cache
def network(arch: str) -> ResNet:
    return random_network(model_config(arch, num_classes=10), size=SIZE)


@cache
def fp32(arch: str) -> ModelProto:
    return export_graph(network(arch), PREPROCESSING, metadata={"lct.arch": arch}).model


@cache
def half(arch: str) -> ModelProto:
    return to_half(fp32(arch), "bf16")


def noise(count: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def saved(model: ModelProto, directory: Path) -> Path:
    onnx.save(model, directory / "graph.onnx")
    return directory / "graph.onnx"


def types_by_kind(model: ModelProto) -> dict[str, set[str]]:
    """What OpenVINO computes each kind of layer in, on this processor."""
    compiled = compile_graph(read_graph(BytesIO(model.SerializeToString())), 1, threads=1)
    types: defaultdict[str, set[str]] = defaultdict(set)
    for node in compiled.get_runtime_model().get_ops():
        known = node.get_rt_info()
        types[known["layerType"].astype(str)].add(known["runtimePrecision"].astype(str))
    return types


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory, openvino_bundle: Path) -> dict[Precision, Path]:
    """The shipped checkpoint for OpenVINO, in all that this processor has."""
    directory = tmp_path_factory.mktemp("openvino")
    for precision in PRECISIONS[1:]:
        calibration = CalibrationOptions(data="fashion-mnist", images=64) if precision == "int8" else None
        options = ExportOptions(
            target="openvino", precision=precision, calibration=calibration or CalibrationOptions()
        )
        export(DEMO_CHECKPOINT, directory / precision, options)
    made: dict[Precision, Path] = {precision: directory / precision for precision in PRECISIONS[1:]}
    return {"fp32": openvino_bundle, **made}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_bundle_carries_the_proof_on_openvino_itself(
    bundles: dict[Precision, Path], precision: Precision
) -> None:
    manifest = open_bundle(bundles[precision]).manifest
    artifact, report = manifest.artifacts[-1], manifest.parity[-1]
    assert (artifact.runtime, artifact.precision, artifact.verified) == ("openvino", precision, True)
    assert (report.artifact, report.runtime) == (artifact.path, "openvino")
    assert report.passed
    assert "openvino" in report.versions
    assert len(report.gates) == manifest.certificate.attention_blocks == 9
    assert max(gate.max_abs_error for gate in report.gates) < MAX_GATE_ERROR[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_answers_the_golden_inputs_at_every_batch(
    bundles: dict[Precision, Path], precision: Precision
) -> None:
    bundle = open_bundle(bundles[precision])
    runtime = open_bundled(bundle, "openvino", RuntimeOptions(threads=1, max_batch=4))
    assert runtime.spec.precision == precision
    assert runtime.spec.compiled_batches == (1, 2, 4)
    check_golden(bundle, runtime)


@pytest.mark.parametrize("arch", FAMILIES)
def test_the_graph_is_pytorch_s_on_random_weights(arch: str, tmp_path: Path) -> None:
    path, images = saved(spell_for_openvino(fp32(arch)), tmp_path), noise(3)
    with torch.inference_mode():
        expected = ImageClassifier(network(arch), PREPROCESSING).eval()(torch.tensor(images)).numpy()
    logits = open_artifact("openvino", path, RuntimeOptions(threads=1)).infer(images)
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("arch", FAMILIES[:-1])
@pytest.mark.parametrize("precision", ["fp32", *(["bf16"] if HAS_BF16 else [])])
def test_gates_are_near_those_in_float64(arch: str, precision: Precision, tmp_path: Path) -> None:
    model = half(arch) if precision == "bf16" else fp32(arch)
    path, images = saved(spell_for_openvino(model), tmp_path), noise(4)
    exact = compute_reference(network(arch), PREPROCESSING, images, gate_images=4).gates
    gates = read_gates(path, images, batch=2, runtime="openvino")
    assert gates.keys() == exact.keys()
    compared = [compare_gates(layer, exact[layer], gate) for layer, gate in gates.items()]
    assert not any(gate.nan for gate in compared)
    # In bf16 the later blocks of random weights get inputs that have left PyTorch's.
    errors = [gate.max_abs_error for gate in compared][: 1 if precision == "bf16" else None]
    assert max(errors) < MAX_GATE_ERROR[precision]


@pytest.mark.parametrize("size", [64, 88, 96])  # 11 rows make no equal bands
def test_in_bf16_bands_of_rows_are_summed_in_float32(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_network(model_config("lct_resnet26", num_classes=10), size=size)
    preprocessing = Preprocessing(resize=size, crop=size)
    source = to_half(export_graph(model, preprocessing, metadata={}).model, "bf16")
    spelled = spell_for_openvino(source)
    bands = {len(node.output) for node in spelled.graph.node if node.op_type == "Split"}
    assert bands == {64: {4, 2}, 88: {2, 6, 3}, 96: {6, 3}}[size]

    def first_gates(graph: ModelProto) -> np.ndarray:
        """Of the graph emulated, so that any processor rounds as one with bf16 does."""
        path, images = saved(emulate(graph), tmp_path), noise(2, size)
        return next(iter(read_gates(path, images, batch=2, runtime="onnxruntime").values()))

    banded = first_gates(spelled)
    monkeypatch.setattr(exporters.openvino, "_BANDS", 1)
    whole = first_gates(spell_for_openvino(source))
    assert np.abs(banded - whole).max() < 1e-5  # a sum in bf16 is off by more than 1e-3


@pytest.mark.parametrize("make", [fp32, *([half] if HAS_BF16 else [])])
def test_the_image_is_not_transposed(make: Callable[[str], ModelProto]) -> None:
    """It lies channels last, as the first convolution reads it."""
    spelled = spell_for_openvino(make("lct_resnet26"))
    assert [node.op_type for node in spelled.graph.node].count("Transpose") == 1
    assert "Transpose" not in types_by_kind(spelled)


def test_mean_and_deviation_may_be_one_constant(tmp_path: Path) -> None:
    halves = (0.5, 0.5, 0.5)
    preprocessing = Preprocessing(resize=SIZE, crop=SIZE, mean=halves, std=halves)
    model = export_graph(network("resnet18"), preprocessing, metadata={}).model
    for node in model.graph.node:
        node.input[:] = ["mean" if name == "std" else name for name in node.input]
    spelled = spell_for_openvino(model)
    names = [constant.name for constant in spelled.graph.initializer]
    assert len(names) == len(set(names))
    images = noise(2)
    expected, answered = (
        open_artifact(runtime, saved(graph, tmp_path), RuntimeOptions(threads=1)).infer(images)
        for runtime, graph in (("onnxruntime", model), ("openvino", spelled))
    )
    assert np.abs(answered - expected).max() < 1e-4 * np.abs(expected).max()


def test_float32_stays_float32_where_the_processor_could_do_less() -> None:
    types = types_by_kind(spell_for_openvino(fp32("lct_resnet26")))
    assert types["Convolution"] == types["MVN"] == types["FullyConnected"] == {"f32"}
    assert not any("bf16" in found for found in types.values())


@pytest.mark.skipif(not HAS_BF16, reason="a processor without bf16; that it is refused is tested below")
def test_of_a_bf16_graph_the_gate_is_in_float32() -> None:
    types = types_by_kind(spell_for_openvino(half("lct_resnet26")))
    assert types["Convolution"] == {"bf16"}
    # The context, also where it is pooled before the convolution, and the normalisation.
    assert types["Reduce"] == types["MVN"] == {"f32"}
    assert {"f32", "bf16"} <= types["Subgraph"]  # w ⊙ ẑ + b and the sigmoid; the scale


def test_bf16_on_a_processor_without_is_refused_and_not_computed_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lct_deploy.runtime.openvino, "capabilities", lambda: ["FP32", "INT8"])
    path = saved(spell_for_openvino(half("lct_resnet26")), tmp_path)
    with pytest.raises(RuntimeUnavailableError, match="no bf16"):
        open_artifact("openvino", path, RuntimeOptions())


def test_in_bf16_the_first_stage_is_pooled_before_its_last_convolution() -> None:
    """Where that reads a quarter of the channels, and pixels are many; never in float32."""
    spelled = spell_for_openvino(half("lct_resnet26"))
    pooled = {node.output[0]: node.input[0] for node in spelled.graph.node if "Pool" in node.op_type}
    contexts = [name for name in pooled if ".attn" in name]
    assert [name for name in contexts if name.endswith(".u.z")] == [
        "layer1.0.attn.u.z",
        "layer1.1.attn.u.z",
    ]
    assert len(contexts) == 8
    in_float32 = spell_for_openvino(fp32("lct_resnet26"))
    assert not any(node.output[0].endswith(".u.z") for node in in_float32.graph.node)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_equal_batches_give_equal_bits(bundles: dict[Precision, Path], precision: Precision) -> None:
    bundle = open_bundle(bundles[precision])
    images = bundle.golden().images[:7]
    runtime = open_bundled(bundle, "openvino", RuntimeOptions(threads=2, max_batch=4))
    logits = runtime.infer(images)
    assert np.array_equal(runtime.infer(images), logits)
    # 7 are 4 and 3, which are filled up to 4: an image's answer is not its neighbours'.
    assert np.array_equal(runtime.infer(images[4:]), logits[4:])
    assert np.array_equal(runtime.infer(images[3::-1]), logits[3::-1])


def test_an_int8_graph_has_bytes_with_zero_points_and_an_exact_gate(bundles: dict[Precision, Path]) -> None:
    model = onnx.load(bundles["int8"] / "int8-openvino.onnx")
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert all(node.domain != DOMAIN for node in model.graph.node)
    assert not model.functions
    quantized = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert {constants[node.input[2]].dtype for node in quantized} == {np.dtype(np.uint8)}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    dequantized = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    assert all({node.input[0], node.input[1]} <= dequantized for node in convolutions)
    assert {constants[node.input[2]].dtype for node in convolutions} == {np.dtype(np.float32)}
    assert not any("gate" in node.input[0] for node in quantized)


@pytest.mark.parametrize("precision", [precision for precision in PRECISIONS if precision != "fp32"])
def test_its_layers_can_be_blamed(bundles: dict[Precision, Path], precision: Precision) -> None:
    bundle = bundles[precision]
    variant = onnx.load(bundle / f"{precision}-openvino.onnx")
    hybrids = Hybrids(onnx.load(bundle / "model.onnx"), variant)
    # 19 convolutions, two shortcuts and the classifier; attention and what else a precision changes.
    assert len(hybrids.changed()) >= 22 + 9 * (precision == "bf16")


def test_openvino_is_not_let_to_report_the_import() -> None:
    code = (
        "import sys, lct_deploy.runtime.openvino\n"
        "assert sys.modules['openvino_telemetry'] is None\n"
        "assert 'openvino.tools.ovc.telemetry_stub' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("content", [b"not a graph", None])
def test_a_file_that_is_no_graph_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    """A text, and a graph that ends in the middle; nothing is printed but what the error says."""
    path = tmp_path / "graph.onnx"
    path.write_bytes(content or fp32("resnet18").SerializeToString()[:100_000])
    with pytest.raises(BundleError, match=r"openvino cannot load it: .*can't be parsed$"):
        open_artifact("openvino", path, RuntimeOptions())
    assert capfd.readouterr() == ("", "")


def test_a_graph_with_functions_or_other_tensors_is_refused(tmp_path: Path) -> None:
    portable = saved(fp32("lct_resnet18"), tmp_path)
    with pytest.raises(BundleError, match=r"No conversion rule found for operations: lct\.LinearContext"):
        open_artifact("openvino", portable, RuntimeOptions())
    renamed = spell_for_openvino(fp32("resnet18"))
    renamed.graph.output[0].name = renamed.graph.node[-1].output[0] = "scores"
    with pytest.raises(BundleError, match=r"openvino cannot load it.*logits"):
        open_artifact("openvino", saved(renamed, tmp_path), RuntimeOptions())


def test_commands_say_how_a_graph_for_openvino_is_made(quick_cli: QuickCli, demo_bundle: Path) -> None:
    done = quick_cli("verify", demo_bundle, "--runtime", "openvino")
    assert (done.returncode, done.stdout) == (1, "")
    assert "holds no fp32 graph that openvino can run" in done.stderr
    assert "--for openvino --precision fp32" in done.stderr
    done = quick_cli("compile", demo_bundle, "--runtime", "openvino")
    assert (done.returncode, done.stdout) == (2, "")
    assert "nothing is compiled before" in done.stderr
    assert "--for openvino" in done.stderr


def test_verify_and_bench_take_it(cli: Cli, bundles: dict[Precision, Path]) -> None:
    done = cli("verify", bundles["int8"], "--runtime", "openvino", "--checkpoint", DEMO_CHECKPOINT)
    assert done.returncode == 0, done.stderr
    assert "int8 on openvino: PASSED" in done.stdout
    short = ("--seconds", 0.02, "--rounds", 3, "--threads", 1, "--batch", "1,3", "--json")
    done = cli("bench", bundles["fp32"], "--runtime", "openvino", *short)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [(row["runtime"], row["batch"]) for row in rows] == [("openvino", 1), ("openvino", 3)]


_ONLY_OPENVINO = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "onnx", "onnxscript", "safetensors", "onnxruntime"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""


def test_it_serves_where_there_is_no_onnxruntime_torch_or_onnx(
    bundles: dict[Precision, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python loads `sitecustomize` in every process of the server."""
    (tmp_path / "sitecustomize.py").write_text(_ONLY_OPENVINO)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    probe = subprocess.run([sys.executable, "-c", "import onnxruntime"], capture_output=True, check=False)
    assert b"No module named 'onnxruntime'" in probe.stderr
    with Server(bundles["int8"], runtime="openvino") as server, httpx.Client(base_url=server.url) as http:
        assert classify(http, encoded()).json()["predictions"][0][0]["label"] == "Ankle boot"


# Where its time goes


def test_the_profile_tells_convolutions_by_their_operations_from_the_attention(
    bundles: dict[Precision, Path],
) -> None:
    bundle = open_bundle(bundles["int8"])
    profiled = Profiled(bundle, "int8", 2, 1)
    for _ in range(3):
        profiled.infer()
    rows = {row.part: row for row in profiled.rows()}
    graph = onnx.load(bundle.file(bundle.artifact("openvino", "int8")))
    operations = node_operations(graph)
    convolutions = sum(operations[node.name] for node in graph.graph.node if node.op_type == "Conv")
    assert sum(row.operations for row in rows.values()) == 2 * convolutions
    assert rows["layer1, 3x3"].nodes == 6  # of a ResNet-20
    assert 1 <= rows["MVN"].nodes <= 9  # some take less than OpenVINO's clock tells
    assert all(row.inferences == 3 and row.milliseconds > 0 for row in rows.values())
