"""`lct-deploy compile` for TensorRT: real engines of RTX, which builds them without a GPU."""

import json
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

import exporters.tensorrt.compile as compiling
from exporters.nodes import node_module
from exporters.options import CalibrationOptions, ExportOptions
from exporters.quantization.calibration import calibrate
from exporters.quantization.histogram import DEFAULT_METHOD
from exporters.quantization.qdq import quantize
from exporters.spelling import spell_out
from exporters.tensorrt.build import build_engine
from exporters.tensorrt.compile import compile_engine
from exporters.tensorrt.layers import EngineLayer, of_profile
from exporters.tensorrt.options import BuildOptions, parse_profiles
from lct_deploy.atomic import sha256_file
from lct_deploy.bundle import open_bundle
from lct_deploy.manifest import Artifact, Manifest, Precision, Profile
from lct_deploy.runtime import flavours
from lct_deploy.runtime.flavours import Flavour, load_flavour
from lct_deploy.sample import DEMO_CHECKPOINT
from tests.conftest import Cli, QuickCli, export
from tests.test_compile import files, save_images

ROOT = Path(__file__).parent.parent
RTX = ("--runtime", "tensorrt-rtx")
MIXED = parse_profiles("1,2:4:8")


@pytest.fixture(scope="module")
def rtx() -> Flavour:
    return load_flavour("tensorrt-rtx")


@pytest.fixture(scope="module")
def engines(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo bundle with an engine of every precision that needs no calibration."""
    path = Path(shutil.copytree(demo_bundle, tmp_path_factory.mktemp("engines") / "demo"))
    compile_(path, precision="fp32")
    compile_(path, precision="tf32")
    compile_(path, precision="fp16", gpus=("sm89", "sm120"))
    compile_(path, precision="bf16", profiles=MIXED)
    return path


@pytest.fixture
def compiled(engines: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(engines, tmp_path / "bundles" / "demo"))


@pytest.fixture
def bundle(demo_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the demo bundle with nothing compiled."""
    return Path(shutil.copytree(demo_bundle, tmp_path / "bundles" / "demo"))


@pytest.fixture(scope="module")
def quantized(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Precision, Path]:
    """The shipped checkpoint quantized for TensorRT, and its engines."""
    directory = tmp_path_factory.mktemp("quantized")
    calibration = CalibrationOptions(data=str(save_images(directory / "images", 64)))
    bundles: dict[Precision, Path] = {"int8": directory / "int8", "fp8": directory / "fp8"}
    export(
        DEMO_CHECKPOINT,
        bundles["int8"],
        ExportOptions(precision="int8", target="tensorrt", calibration=calibration),
    )
    shutil.copytree(demo_bundle, bundles["fp8"])
    add_fp8_graph(bundles["fp8"])
    for precision, path in bundles.items():
        compile_(path, precision=precision)
    return bundles


def add_fp8_graph(bundle: Path) -> None:
    """A graph as `export` makes it, whose ranges nothing is said of: what counts is that it builds."""
    model = onnx.load(bundle / "model.onnx")
    calibration = calibrate(model, [open_bundle(bundle).golden().images], DEFAULT_METHOD, total=1)
    onnx.save(spell_out(quantize(model, calibration, "tensorrt", "fp8")), bundle / "fp8-tensorrt.onnx")
    manifest = json.loads((bundle / "manifest.json").read_text())
    graph = {**manifest["artifacts"][0], "path": "fp8-tensorrt.onnx", "runtime": "tensorrt"}
    graph.update(precision="fp8", sha256=sha256_file(bundle / "fp8-tensorrt.onnx"))
    manifest["artifacts"].append(graph)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def compile_(bundle: Path, heard: list[str] | None = None, **options: Any) -> Manifest:
    chosen = BuildOptions(gpus=("sm89",)).model_copy(update=options)
    announce: Callable[[str], None] = (lambda _: None) if heard is None else heard.append
    return compile_engine(
        open_bundle(bundle),
        "tensorrt-rtx",
        chosen,
        images=None,
        command="lct-deploy compile",
        announce=announce,
    )


def engine_of(bundle: Path, precision: Precision) -> Artifact:
    held = open_bundle(bundle).manifest.artifacts
    (engine,) = [a for a in held if (a.kind, a.precision) == ("compiled", precision)]
    return engine


def graph_of(bundle: Path, precision: Precision) -> ModelProto:
    return onnx.load(bundle / f"{precision}-tensorrt.onnx")


def convolutions(layers: tuple[EngineLayer, ...]) -> list[EngineLayer]:
    """Alone, or with what is fused to them."""
    return [layer for layer in layers if layer.kind == "correlation" or layer.name.startswith("__myl_Corr")]


def assert_no_strays(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    listed = {*(a.path for a in manifest.artifacts), manifest.golden.path, "manifest.json"}
    assert set(files(bundle)) == listed
    assert {path.name for path in bundle.iterdir() if path.is_dir()} <= {"engines"}


# What is added


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16", "int8", "fp8"])
def test_an_engine_is_recorded_with_all_that_it_depends_on(
    engines: Path, quantized: dict[Precision, Path], rtx: Flavour, precision: Precision
) -> None:
    path = quantized.get(precision, engines)
    engine = engine_of(path, precision)
    gpu = "sm89,sm120" if precision == "fp16" else "sm89"
    assert engine.path == f"engines/tensorrt-rtx-{precision}-{gpu}-{engine.sha256[:8]}.engine"
    assert sha256_file(path / engine.path) == engine.sha256
    assert (engine.runtime, engine.gpu, engine.verified) == ("tensorrt-rtx", gpu, False)
    assert engine.profiles == (MIXED if precision == "bf16" else (Profile(min=1, opt=8, max=64),))
    assert engine.versions == {"tensorrt-rtx": rtx.version, "driver": "absent"}
    assert engine.source == f"{'fp32' if precision == 'tf32' else precision}-tensorrt.onnx"
    assert engine.build is not None
    assert engine.build.attention == "native"
    assert engine.build.command == "lct-deploy compile"
    assert engine.build.layers == sum(engine.build.layer_summary.values()) > 0
    assert_no_strays(path)


def test_graphs_that_a_bundle_lacked_are_added_with_their_proof(engines: Path) -> None:
    manifest = open_bundle(engines).manifest
    graphs = {a.path: a for a in manifest.artifacts if a.kind == "graph"}
    added = ["bf16-tensorrt.onnx", "fp16-tensorrt.onnx", "fp32-tensorrt.onnx"]
    assert sorted(graphs) == [*added, "model.onnx"]
    for path in added:
        (report,) = [r for r in manifest.parity if r.artifact == path]
        assert report.passed
        assert report.reference == "model.onnx"
        assert (graphs[path].runtime, graphs[path].source, graphs[path].verified) == (
            "tensorrt",
            "model.onnx",
            True,
        )


def test_a_graph_that_the_bundle_has_is_taken_as_it_is(quantized: dict[Precision, Path]) -> None:
    graphs = [a.path for a in open_bundle(quantized["int8"]).manifest.artifacts if a.kind == "graph"]
    assert graphs == ["model.onnx", "int8-tensorrt.onnx"]


def test_the_manifest_fits_its_schema(engines: Path) -> None:
    schema = json.loads((ROOT / "docs" / "manifest.schema.json").read_text())
    jsonschema.validate(json.loads((engines / "manifest.json").read_text()), schema)


def test_tf32_is_a_flag_and_not_another_graph(engines: Path) -> None:
    exact, fast = engine_of(engines, "fp32"), engine_of(engines, "tf32")
    assert exact.source == fast.source
    assert exact.sha256 != fast.sha256


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("fp32", "Float"),
        ("tf32", "Float"),
        ("fp16", "Half"),
        ("bf16", "BFloat16"),
        ("int8", "Int8"),
        ("fp8", "FP8"),
    ],
)
def test_convolutions_compute_in_what_the_graph_says(
    engines: Path, quantized: dict[Precision, Path], rtx: Flavour, precision: Precision, dtype: str
) -> None:
    path = quantized.get(precision, engines)
    graph = graph_of(path, "fp32" if precision == "tf32" else precision)
    options = BuildOptions(precision=precision, gpus=("sm89",))
    layers = build_engine(graph, options, flavour=rtx, announce=print).layers
    found = convolutions(layers)
    assert len(found) == sum(node.op_type == "Conv" for node in graph.graph.node)
    stem, *others = [layer.inputs[0].dtype for layer in found]
    assert set(others) == {dtype}
    assert stem == ("Float" if precision == "fp8" else dtype)  # three channels are too few for fp8


def test_every_profile_has_its_layers(engines: Path, rtx: Flavour) -> None:
    graph = graph_of(engines, "fp32")
    options = BuildOptions(gpus=("sm89",), profiles=parse_profiles("1,2:4:8,16"))
    layers = build_engine(graph, options, flavour=rtx, announce=print).layers
    nodes = sum(node.op_type == "Conv" for node in graph.graph.node)
    batches = [{layer.outputs[0].shape[0] for layer in convolutions(of_profile(layers, i))} for i in range(3)]
    assert batches == [{1}, {-1}, {16}]
    assert [len(convolutions(of_profile(layers, i))) for i in range(3)] == [nodes] * 3


def test_an_engine_for_several_gpus_is_another(engines: Path, rtx: Flavour) -> None:
    graph = graph_of(engines, "fp32")
    one, two = (
        build_engine(graph, BuildOptions(gpus=gpus), flavour=rtx, announce=print).engine
        for gpus in (("sm89",), ("sm89", "sm120"))
    )
    assert one != two


def test_the_command_line_says_what_it_did(cli: Cli, quick_cli: QuickCli, compiled: Path) -> None:
    arguments = (
        "compile",
        compiled,
        *RTX,
        "--precision",
        "bf16",
        "--gpu",
        "sm120,SM89",
        "--batch",
        "1,2:4:8",
    )
    done = cli(*arguments, "--opt-level", "2", "--json")
    assert done.returncode == 0, done.stderr
    artifacts = json.loads(done.stdout)["artifacts"]
    (engine,) = [
        a for a in open_bundle(compiled).manifest.artifacts if a.gpu and "opt level" in options_of(a)
    ]
    assert engine.model_dump(mode="json") in artifacts
    assert (engine.gpu, engine.precision, engine.profiles) == ("sm89,sm120", "bf16", MIXED)
    assert engine.build is not None
    assert engine.build.options == {"opt level": "2"}
    assert (
        engine.build.command == f"lct-deploy {' '.join(map(str, (*arguments, '--opt-level', 2, '--json')))}"
    )
    assert f"{engine.build.layers} layers" in done.stderr
    assert "not verified: there is no GPU here" in done.stderr
    assert f"lct-deploy verify {compiled} --runtime tensorrt-rtx --precision bf16" in done.stderr
    shown = quick_cli("inspect", compiled)
    assert f"{engine.path}: compiled for tensorrt-rtx, bf16, NOT VERIFIED" in shown.stdout
    assert f"sm89,sm120, batches 1:1:1, 2:4:8, {engine.build.layers} layers" in shown.stdout


def options_of(artifact: Artifact) -> dict[str, str]:
    return artifact.build.options if artifact.build else {}


def test_the_plugin_takes_the_place_of_the_native_form(compiled: Path) -> None:
    native = engine_of(compiled, "fp16")
    compile_(compiled, precision="fp16", gpus=("sm89", "sm120"), attention="plugin")
    engine = engine_of(compiled, "fp16")
    assert engine.path != native.path
    assert engine.source == native.source
    assert native.build is not None
    assert engine.build is not None
    assert engine.build.attention == "plugin"
    assert engine.build.layer_summary["custom_layer"] == 9
    assert "custom_layer" not in native.build.layer_summary
    heard: list[str] = []
    compile_(compiled, heard, precision="fp16", gpus=("sm89", "sm120"), attention="plugin")
    assert any("nothing has changed" in text for text in heard)


def test_kernels_are_made_for_gpus_that_no_kernel_is_named_after(quick_cli: QuickCli, compiled: Path) -> None:
    """PTX for sm120 runs on sm121; for sm75 there is none."""
    arguments = ("compile", compiled, *RTX, "--precision", "fp16", "--attention", "plugin")
    assert quick_cli(*arguments, "--gpu", "sm121").returncode == 0
    done = quick_cli(*arguments, "--gpu", "sm75")
    assert done.returncode == 2
    assert "no attention kernel is made for sm75" in done.stderr


# What is not built again


def test_an_unchanged_input_is_not_built_again(quick_cli: QuickCli, compiled: Path) -> None:
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in compiled.rglob("*.*")}
    done = quick_cli("compile", compiled, *RTX, "--precision", "fp16", "--gpu", "sm120,sm89")
    assert done.returncode == 0
    assert "nothing has changed since it was built" in done.stderr
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
    assert set(before) == set(compiled.rglob("*.*"))


@pytest.mark.parametrize("missing", [False, True])
def test_a_damaged_engine_is_built_again_by_the_command_that_its_refusal_names(
    quick_cli: QuickCli, compiled: Path, missing: bool
) -> None:
    file = compiled / engine_of(compiled, "fp16").path
    if missing:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:1000])
    refused = quick_cli("inspect", compiled)
    assert refused.returncode == 1
    command = shlex.split(refused.stderr.splitlines()[1])
    assert command[:2] == ["lct-deploy", "compile"]
    assert quick_cli(*command[1:]).returncode == 0
    engine = engine_of(compiled, "fp16")
    assert (engine.gpu, engine.profiles) == ("sm89,sm120", (Profile(min=1, opt=8, max=64),))
    assert_no_strays(compiled)


@pytest.mark.parametrize(
    "changed",
    [{"profiles": parse_profiles("1:8:32")}, {"opt_level": 5}, {"gpus": ("sm89", "sm120")}],
    ids=["profiles", "opt level", "gpus"],
)
def test_other_options_are_another_build(compiled: Path, changed: dict[str, Any]) -> None:
    heard: list[str] = []
    compile_(compiled, heard, **changed)
    assert not any("nothing has changed" in text for text in heard)
    assert_no_strays(compiled)


def test_another_graph_is_another_build(compiled: Path) -> None:
    graph = graph_of(compiled, "fp32")
    graph.producer_name = "another"
    rewrite(compiled, "fp32-tensorrt.onnx", graph)
    heard: list[str] = []
    compile_(compiled, heard)
    assert not any("nothing has changed" in text for text in heard)


def test_a_new_engine_takes_the_place_of_the_one_for_the_same_gpus(compiled: Path) -> None:
    before = {a.path for a in open_bundle(compiled).manifest.artifacts}
    old = engine_of(compiled, "bf16")
    compile_(compiled, precision="bf16", profiles=parse_profiles("4"))
    new = engine_of(compiled, "bf16")
    assert new.path != old.path
    assert {a.path for a in open_bundle(compiled).manifest.artifacts} == before - {old.path} | {new.path}
    assert_no_strays(compiled)


def test_engines_for_other_gpus_stay(compiled: Path) -> None:
    compile_(compiled, precision="fp16", gpus=("sm86",))
    held = [a.gpu for a in open_bundle(compiled).manifest.artifacts if a.precision == "fp16" and a.gpu]
    assert held == ["sm89,sm120", "sm86"]


# Wrong use: exit 2, and nothing has changed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((*RTX, "--batch", "8:4:1"), "not in order"),
        ((*RTX, "--batch", "1:8"), "--batch MIN:OPT:MAX"),
        ((*RTX, "--batch", "0:1:2"), "not in order"),
        ((*RTX, "--batch", "4,1:2:4,4"), "4:4:4 is in it twice"),
        ((*RTX, "--batch", "1:8:4000000"), "--batch up to"),
        ((*RTX, "--gpu", "sm90"), "does not build for sm90"),
        ((*RTX, "--gpu", "rtx4090"), "--gpu sm89,sm120"),
        ((*RTX, "--gpu", "sm89,sm75", "--precision", "bf16"), "sm75 cannot compute in bf16"),
        ((*RTX, "--gpu", "sm86", "--precision", "fp8"), "sm86 cannot compute in fp8"),
        ((*RTX, "--precision", "fp64"), "unknown precision"),
        ((*RTX, "--opt-level", "6"), "opt_level"),
        ((*RTX, "--attention", "flash"), "attention"),
        ((*RTX, "--timing-cache", "times"), "no --timing-cache"),
        ((*RTX, "--version-compatible"), "no --version-compatible"),
        ((*RTX, "--hardware-compatible"), "no --hardware-compatible"),
        (("--runtime", "tensorrt", "--gpu", "sm90"), "there is no --gpu"),
        (("--runtime", "onnxruntime", "--gpu", "sm90"), "--gpu: not of the runtime onnxruntime"),
        (("--runtime", "onnxruntime", "--opt-level", "0"), "--opt-level: not of"),
        (("--runtime", "onnxruntime", "--attention", "plugin"), "--attention: not of"),
        (("--runtime", "onnxruntime", "--version-compatible"), "--version-compatible: not of"),
        (("--runtime", "openvino"), "openvino compiles a graph when it opens it"),
        (("--runtime", "torch"), "nothing can be compiled for the runtime 'torch'"),
    ],
)
def test_wrong_use_is_refused(
    quick_cli: QuickCli, engines: Path, arguments: tuple[str, ...], said: str
) -> None:
    before = files(engines)
    done = quick_cli("compile", engines, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert files(engines) == before


# What cannot be built: exit 1, and nothing has changed


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_a_precision_that_takes_calibration_names_its_export(
    quick_cli: QuickCli, engines: Path, precision: Precision
) -> None:
    done = quick_cli("compile", engines, *RTX, "--precision", precision, "--gpu", "sm89")
    assert done.returncode == 1
    assert f"holds no {precision} graph for TensorRT" in done.stderr
    assert f"--precision {precision} --for tensorrt --calib-data DIR" in done.stderr


def test_tensorrts_own_reason_names_the_node_and_its_module(quick_cli: QuickCli, compiled: Path) -> None:
    before = files(compiled)
    done = quick_cli("compile", compiled, *RTX, "--gpu", "sm75")
    assert done.returncode == 1
    node = graph_of(compiled, "fp32").graph.node[-1]
    assert node_module(node) == "fc"
    assert f"Cannot compile operation '{node.name}' for Turing (SM75): FP32 GEMM" in done.stderr
    assert "(PyTorch fc)" in done.stderr
    assert files(compiled) == before


def test_int8_for_turing_is_refused_with_tensorrts_reason(
    quick_cli: QuickCli, quantized: dict[Precision, Path]
) -> None:
    int8 = quantized["int8"]
    before = files(int8)
    done = quick_cli("compile", int8, *RTX, "--gpu", "sm75")
    assert done.returncode == 1
    assert "TensorRT cannot build this engine:\n" in done.stderr
    assert "SM75" in done.stderr
    assert files(int8) == before


def test_an_operation_that_tensorrt_lacks_is_named_with_its_module(
    quick_cli: QuickCli, compiled: Path
) -> None:
    graph = graph_of(compiled, "fp32")
    node = next(node for node in graph.graph.node if node.op_type == "Sigmoid")
    module = node_module(node)
    node.op_type, node.domain = "Softsquare", "com.example"
    graph.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    rewrite(compiled, "fp32-tensorrt.onnx", graph)
    before = files(compiled)
    done = quick_cli("compile", compiled, *RTX, "--gpu", "sm89", "--batch", "3")
    assert done.returncode == 1
    assert f"node {node.name} ({node.op_type})" in done.stderr
    assert module == "layer1.0.attn"
    assert f"(PyTorch {module})" in done.stderr
    assert "no plugin of that name" in done.stderr
    assert files(compiled) == before


def rewrite(bundle: Path, path: str, graph: ModelProto) -> None:
    """Put a graph in the place of another, with the hash that the manifest then needs."""
    onnx.save(graph, bundle / path)
    manifest = json.loads((bundle / "manifest.json").read_text())
    for artifact in manifest["artifacts"]:
        if artifact["path"] == path:
            artifact["sha256"] = sha256_file(bundle / path)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_tensorrt_that_is_not_installed_says_how_to_get_it(quick_cli: QuickCli, engines: Path) -> None:
    if flavours.find_spec("tensorrt") is not None:
        pytest.skip("tensorrt is installed here")
    done = quick_cli("compile", engines, "--runtime", "tensorrt")
    assert done.returncode == 1
    assert "tensorrt is not installed\npip install 'lct-deploy[gpu]'" in done.stderr


def test_a_full_disk_leaves_the_bundle_as_it_was(quick_cli: QuickCli, compiled: Path) -> None:
    before = files(compiled)
    with largest_file(100_000):
        done = quick_cli("compile", compiled, *RTX, "--gpu", "sm86")
    assert done.returncode == 1
    assert "cannot be written: File too large" in done.stderr
    assert files(compiled) == before
    assert_no_strays(compiled)


@contextmanager
def largest_file(size: int) -> Generator[None]:
    """What the system says of a write beyond `size` bytes is what it says of one on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("step", ["tensorrt.compile.build_engine", "compiled.write_manifest"])
def test_an_interruption_leaves_the_bundle_as_it_was(
    compiled: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    before = files(compiled)
    monkeypatch.setattr(f"exporters.{step}", interrupt)
    with pytest.raises(KeyboardInterrupt):
        compile_(compiled, gpus=("sm86",))
    assert files(compiled) == before
    assert_no_strays(compiled)


# Ctrl-C in the middle of TensorRT's own code, where an exception would abort the process.
_INTERRUPTED = """
import signal, sys
from pathlib import Path
from exporters.tensorrt.progress import Phases
from tests.test_tensorrt_compile import compile_
started, handler, names = Phases.start, signal.getsignal(signal.SIGINT), []
def interrupt(self, name, steps):
    started(self, name, steps)
    names.append(name)
    if len(names) == 1:
        signal.raise_signal(signal.SIGINT)
Phases.start = interrupt
try:
    compile_(Path(sys.argv[1]), gpus=("sm86",))
except KeyboardInterrupt:
    assert signal.getsignal(signal.SIGINT) is handler
    print("interrupted", len(names))
"""


def test_ctrl_c_ends_a_build(compiled: Path) -> None:
    """In a process of its own: where OpenVINO has run, TensorRT-RTX crashes when it gives up a build."""
    before = files(compiled)
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED, str(compiled)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said, phases = done.stdout.split()
    assert said == "interrupted"
    assert int(phases) < 5
    assert files(compiled) == before


def test_a_graph_that_does_not_agree_is_not_compiled(
    bundle: Path, quick_cli: QuickCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = compiling.make_variant

    def shifted(model: ModelProto, *arguments: Any) -> Any:
        bias = next(t for t in model.graph.initializer if t.name.endswith("fc.bias"))
        values = numpy_helper.to_array(bias) + np.float32(5)
        bias.CopyFrom(numpy_helper.from_array(values, bias.name))
        return honest(model, *arguments)

    before = files(bundle)
    monkeypatch.setattr(compiling, "make_variant", shifted)
    done = quick_cli("compile", bundle, *RTX, "--gpu", "sm89")
    assert done.returncode == 1
    assert "fp32-tensorrt.onnx does not agree with model.onnx" in done.stderr
    assert files(bundle) == before
