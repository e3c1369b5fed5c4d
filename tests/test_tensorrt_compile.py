"""`lct-deploy compile` for TensorRT: real engines of RTX, which builds them without a GPU."""

import json
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
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
from exporters.tensorrt.build import build_engine
from exporters.tensorrt.cache import Place, build_key
from exporters.tensorrt.compile import compile_engine
from exporters.tensorrt.features import check_flags, rtx_gpus, target_gpus
from exporters.tensorrt.layers import EngineLayer, EngineTensor, layers_of_inspector, of_profile, summarize
from exporters.tensorrt.messages import build_error
from exporters.tensorrt.options import BuildOptions, parse_gpus, parse_profiles
from exporters.tensorrt.progress import Phases
from lct_deploy.atomic import sha256_file
from lct_deploy.bundle import open_bundle
from lct_deploy.errors import RuntimeUnavailableError, UsageError
from lct_deploy.manifest import Artifact, Manifest, Precision, Profile
from lct_deploy.runtime import flavours
from lct_deploy.runtime.flavours import Flavour, driver_version, load_flavour
from lct_deploy.runtime.trt_log import Messages
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
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped checkpoint in int8, quantized for TensorRT."""
    directory = tmp_path_factory.mktemp("int8")
    calibration = CalibrationOptions(data=str(save_images(directory / "images", 64)))
    options = ExportOptions(precision="int8", target="tensorrt", calibration=calibration)
    export(DEMO_CHECKPOINT, directory / "demo", options)
    compile_(directory / "demo", precision="int8")
    return directory / "demo"


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


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16", "int8"])
def test_an_engine_is_recorded_with_all_that_it_depends_on(
    request: pytest.FixtureRequest, rtx: Flavour, precision: Precision
) -> None:
    path: Path = request.getfixturevalue("int8" if precision == "int8" else "engines")
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


def test_a_graph_that_the_bundle_has_is_taken_as_it_is(int8: Path) -> None:
    graphs = [a.path for a in open_bundle(int8).manifest.artifacts if a.kind == "graph"]
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
    [("fp32", "Float"), ("tf32", "Float"), ("fp16", "Half"), ("bf16", "BFloat16"), ("int8", "Int8")],
)
def test_convolutions_compute_in_what_the_graph_says(
    request: pytest.FixtureRequest, rtx: Flavour, precision: Precision, dtype: str
) -> None:
    path: Path = request.getfixturevalue("int8" if precision == "int8" else "engines")
    graph = graph_of(path, "fp32" if precision == "tf32" else precision)
    options = BuildOptions(precision=precision, gpus=("sm89",))
    layers = build_engine(graph, options, flavour=rtx, announce=print).layers
    found = convolutions(layers)
    assert len(found) == sum(node.op_type == "Conv" for node in graph.graph.node)
    assert {layer.inputs[0].dtype for layer in found} == {dtype}


def test_every_profile_has_its_layers(engines: Path, rtx: Flavour) -> None:
    graph = graph_of(engines, "fp32")
    options = BuildOptions(gpus=("sm89",), profiles=parse_profiles("1,2:4:8,16"))
    layers = build_engine(graph, options, flavour=rtx, announce=print).layers
    nodes = sum(node.op_type == "Conv" for node in graph.graph.node)
    batches = [{layer.outputs[0].shape[0] for layer in convolutions(of_profile(layers, i))} for i in range(3)]
    assert batches == [{1}, {-1}, {16}]
    assert [len(convolutions(of_profile(layers, i))) for i in range(3)] == [nodes] * 3


def test_an_engine_for_several_gpus_is_larger(engines: Path, rtx: Flavour) -> None:
    graph = graph_of(engines, "fp32")
    one, two = (
        len(build_engine(graph, BuildOptions(gpus=gpus), flavour=rtx, announce=print).engine)
        for gpus in (("sm89",), ("sm89", "sm120"))
    )
    assert two > one


def test_the_command_line_says_what_it_did(cli: Cli, bundle: Path) -> None:
    arguments = ("compile", bundle, *RTX, "--precision", "fp16", "--gpu", "sm120,SM89", "--batch", "1,2:4:8")
    done = cli(*arguments, "--opt-level", "2", "--json")
    assert done.returncode == 0, done.stderr
    engine = engine_of(bundle, "fp16")
    assert engine.model_dump(mode="json") in json.loads(done.stdout)["artifacts"]
    assert (engine.gpu, engine.profiles) == ("sm89,sm120", MIXED)
    assert engine.build is not None
    assert engine.build.options == {"opt level": "2"}
    assert (
        engine.build.command == f"lct-deploy {' '.join(map(str, (*arguments, '--opt-level', 2, '--json')))}"
    )
    assert f"{engine.build.layers} layers" in done.stderr
    assert "not verified: there is no GPU here" in done.stderr
    assert f"lct-deploy verify {bundle} --runtime tensorrt-rtx --precision fp16" in done.stderr
    shown = cli("inspect", bundle)
    assert f"{engine.path}: compiled for tensorrt-rtx, fp16, NOT VERIFIED" in shown.stdout
    assert "sm89,sm120" in shown.stdout


def test_without_gpus_named_all_that_know_the_precision_are_built_for(rtx: Flavour) -> None:
    assert target_gpus(BuildOptions(), rtx, None) == ("sm80", "sm86", "sm89", "sm120")
    assert target_gpus(BuildOptions(precision="fp8"), rtx, None) == ("sm89", "sm120")
    assert target_gpus(BuildOptions(), rtx, "sm86") == ("sm86",)
    assert target_gpus(BuildOptions(), rtx, "sm90") == ("sm80", "sm86", "sm89", "sm120")


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
    assert engine.build.layers < native.build.layers
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


def test_what_can_change_an_engine_changes_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    options = BuildOptions(timing_cache=cache)
    trt = Flavour(name="tensorrt", version="11.4.0.106", module=None)
    place = Place(gpu="sm90", device="NVIDIA H100", driver="580.95.05")

    def key(graph: str = "a", flavour: Flavour = trt, place: Place = place, **changed: Any) -> str:
        return build_key(graph, options.model_copy(update=changed), flavour=flavour, place=place)

    same = key()
    assert key() == same
    keys = [
        same,
        key(graph="b"),
        key(flavour=Flavour(name="tensorrt", version="11.5.0.1", module=None)),
        key(flavour=Flavour(name="tensorrt-rtx", version="11.4.0.106", module=None)),
        key(place=Place(gpu="sm90", device="NVIDIA H200", driver="580.95.05")),
        key(place=Place(gpu="sm90", device="NVIDIA H100", driver="590.1")),
        key(precision="tf32"),
        key(profiles=MIXED),
        key(gpus=("sm90",)),
        key(attention="plugin"),
        key(opt_level=3),
        key(version_compatible=True),
        key(hardware_compatible=True),
        key(timing_cache=None),
    ]
    for content in (b"", b"times"):
        cache.write_bytes(content)
        keys.append(key())
    monkeypatch.setattr("exporters.tensorrt.cache.__version__", "99")
    assert len({*keys, key()}) == len(keys) + 1


def test_an_rtx_engine_does_not_depend_on_where_it_is_built() -> None:
    rtx = Flavour(name="tensorrt-rtx", version="1", module=None)
    place = Place(gpu=None, device=None, driver=None)
    other = Place(gpu="sm89", device="NVIDIA L4", driver="580.1")
    assert build_key("a", BuildOptions(), flavour=rtx, place=place) == build_key(
        "a", BuildOptions(), flavour=rtx, place=other
    )


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
        (("--runtime", "openvino"), "nothing can be compiled for the runtime 'openvino'"),
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


def test_int8_for_turing_is_refused_with_tensorrts_reason(quick_cli: QuickCli, int8: Path) -> None:
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


def test_tensorrt_without_a_gpu_says_what_builds_without_one() -> None:
    trt = Flavour(name="tensorrt", version="11.4.0.106", module=None)
    check_flags(BuildOptions(version_compatible=True, hardware_compatible=True), "tensorrt")
    with pytest.raises(RuntimeUnavailableError, match="--runtime tensorrt-rtx"):
        target_gpus(BuildOptions(), trt, None)
    assert target_gpus(BuildOptions(precision="fp8"), trt, "sm90") == ("sm90",)
    with pytest.raises(UsageError, match="sm80 cannot compute in fp8"):
        target_gpus(BuildOptions(precision="fp8"), trt, "sm80")


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
    bundle: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    before = files(bundle)
    monkeypatch.setattr(f"exporters.{step}", interrupt)
    with pytest.raises(KeyboardInterrupt):
        compile_(bundle)
    assert files(bundle) == before
    assert_no_strays(bundle)


def test_ctrl_c_ends_a_build(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of TensorRT's own code, where an exception would abort the process."""
    before, started = files(compiled), Phases.start
    names: list[str] = []

    def interrupt(self: Phases, name: str, steps: int) -> None:
        started(self, name, steps)
        names.append(name)
        if len(names) == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Phases, "start", interrupt)
    with pytest.raises(KeyboardInterrupt):
        compile_(compiled, gpus=("sm86",))
    assert len(names) < 5
    assert files(compiled) == before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


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


# The parts


def test_rtx_parses_a_plugin_that_its_wheel_alone_aborts_at(tmp_path: Path) -> None:
    """The library that the parser looks for by another name; in a process of its own, as it may abort."""
    script = tmp_path / "parse.py"
    script.write_text(PLUGIN)
    run = (sys.executable, str(script))
    done = subprocess.run(run, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "True 2\n"), done.stderr


PLUGIN = textwrap.dedent(
    """
    import sys
    sys.path.insert(0, ".")
    from onnx import TensorProto, helper
    from lct_deploy.runtime.flavours import load_flavour

    trt = load_flavour("tensorrt-rtx").module
    NAME = "LinearContextTransform"

    class Plugin(trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild):
        def __init__(self):
            for base in Plugin.__bases__:
                base.__init__(self)
            self.num_outputs, self.plugin_name = 1, NAME
            self.plugin_namespace, self.plugin_version = "lct", "1"

        def get_capability_interface(self, kind):
            return self

        def get_output_data_types(self, types):
            return types[:1]

        def get_output_shapes(self, inputs, shapes, builder):
            return [trt.DimsExprs(inputs[0])]

        def clone(self):
            return Plugin()

    class Creator(trt.IPluginCreatorV3One):
        def __init__(self):
            trt.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_namespace, self.plugin_version = NAME, "lct", "1"
            self.field_names = trt.PluginFieldCollection([])

        def create_plugin(self, name, fields, phase):
            return Plugin()

    creator = Creator()
    trt.get_plugin_registry().register_creator(creator, "lct")
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 8, 4, 4]) for n in "xy")
    attributes = {"plugin_namespace": "lct", "plugin_version": "1"}
    w = helper.make_tensor("w", TensorProto.FLOAT, [8], [1.0] * 8)
    node = helper.make_node(NAME, ["x", "w"], ["y"], domain="lct", **attributes)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("lct", 1)]
    graph = helper.make_graph([node], "g", [x], [y], [w])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    print(parser.parse(model.SerializeToString()), network.num_layers)
    """
)


def test_the_links_are_gone_when_the_process_ends(tmp_path: Path) -> None:
    code = "from lct_deploy.runtime.flavours import load_flavour; load_flavour('tensorrt-rtx')"
    environment = {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=120)
    assert list(tmp_path.iterdir()) == []


def test_gpus_are_those_of_this_rtx(rtx: Flavour) -> None:
    assert rtx_gpus(rtx) == ["sm75", "sm80", "sm86", "sm89", "sm120", "sm121"]
    assert parse_gpus("SM120, sm89,sm89") == ("sm89", "sm120")


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Sep 23 10:11:16 UTC 2025\n",
            "580.95.05",
        ),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.133.20  Release Build  (x@y)\n",
            "570.133.20",
        ),
        ("", None),
        (None, None),
    ],
)
def test_the_drivers_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, version: str | None
) -> None:
    path = tmp_path / "version"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(flavours, "_DRIVER", path)
    assert driver_version() == version


def test_phases_are_shares_of_those_around_them() -> None:
    phases = Phases()
    phases.start("build", 4)
    phases.step("build", 0)
    assert phases.share == 1 / 4
    phases.start("tune", 2)
    phases.step("tune", 0)
    assert phases.share == 1 / 4 + 1 / 8
    phases.start("reformat", 1)
    phases.step("reformat", 0)
    assert phases.share == 1 / 4 + 1 / 4
    phases.finish("reformat")
    phases.finish("tune")
    assert phases.share == 1 / 2
    phases.step("build", 3)
    assert phases.share == 1


def test_a_layer_transposes_where_its_output_lies_in_another_order() -> None:
    nhwc, nchw = (3, 0, 2, 1), (3, 2, 1, 0)

    def layer(source: EngineTensor, result: EngineTensor) -> EngineLayer:
        return EngineLayer("__myl_Tran_myl0_1", "kgen", (source,), (result,))

    def tensor(shape: tuple[int, ...], order: tuple[int, ...]) -> EngineTensor:
        return EngineTensor("x", shape, order, "Float")

    x = tensor((-1, 16, 32, 32), nhwc)
    assert layer(x, tensor((-1, 16, 32, 32), nchw)).transposes
    assert not layer(x, tensor((-1, 16, 32, 32), nhwc)).transposes
    assert not layer(x, tensor((-1, 16, 1, 1), nchw)).transposes
    # A transpose to what the memory is like already: the image's, which is NHWC.
    assert not layer(tensor((-1, 32, 32, 3), nchw), tensor((-1, 3, 32, 32), nhwc)).transposes


def test_layers_of_an_inspector() -> None:
    """As its documentation shows them."""
    tensor = {"Name": "x", "Dimensions": [1, 8], "Format/Datatype": "Row major linear FP32"}
    document = {
        "Layers": [
            {"Name": "Reformatting CopyNode for Input Tensor 0", "LayerType": "Reformat", "Inputs": [tensor]},
            {"Name": "conv1 + relu1", "LayerType": "CaskConvolution", "Outputs": [tensor]},
            {"Name": "conv1 + relu1 [profile 1]", "LayerType": "CaskConvolution"},
        ],
        "Bindings": ["image", "logits"],
    }
    layers = layers_of_inspector(json.dumps(document))
    assert [layer.profile for layer in layers] == [0, 0, 1]
    assert summarize(of_profile(layers)) == {"Reformat": 1, "CaskConvolution": 1}
    assert layers[0].transposes
    assert layers[1].outputs == (EngineTensor("x", (1, 8)),)


def test_an_error_that_only_says_that_there_is_no_driver_is_none_beside_others() -> None:
    messages = Messages()
    absent = "catchCudaError (cudaError 35: CUDA driver version is insufficient for CUDA runtime version)"
    messages.add("ERROR", absent)
    assert messages.reasons() == [absent]
    messages.add("INTERNAL_ERROR", "a real one")
    messages.add("VERBOSE", "Layers:\nName: a")
    messages.add("VERBOSE", "much else")
    messages.add("WARNING", "take care")
    assert messages.reasons() == ["a real one"]
    assert (messages.layers, messages.warnings) == ("Layers:\nName: a", ["take care"])


def test_too_little_memory_is_said_to_be_that() -> None:
    reason = (
        "IBuilder::buildSerializedNetwork: Error Code 2: OutOfMemory (Requested size was 9e9 bytes. "
        "In reserve at /_src/common/memory.cpp:12)"
    )
    error = build_error([reason, reason], ModelProto())
    assert isinstance(error, RuntimeUnavailableError)
    assert error.message.count("Requested size was 9e9 bytes.") == 1
    assert "/_src" not in error.message
    assert "--batch" in str(error)
