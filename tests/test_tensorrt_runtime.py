"""The TensorRT runtime on a GPU of host memory: buffers, batches, lanes, failures, and the way to it.

What a real GPU answers is tested in tests/gpu.
"""

import hashlib
import json
import re
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from exporters.quantization.stem import cast_first
from exporters.spelling import spell_out
from exporters.tensorrt.build import build_engine
from exporters.tensorrt.options import BuildOptions
from exporters.verify import verify_bundle
from lct_deploy.bundle import open_bundle
from lct_deploy.errors import BundleError, DeviceError, RuntimeUnavailableError, UsageError
from lct_deploy.manifest import Artifact, EngineBuild, Profile
from lct_deploy.rebuild import compile_command
from lct_deploy.runtime import Runtime, RuntimeOptions, open_artifact, open_bundled
from lct_deploy.runtime.engine import load_engine
from lct_deploy.runtime.engines import Place, misfits
from lct_deploy.runtime.flavours import FlavourName, gpu_capability, load_flavour
from lct_deploy.sample import DEMO_CHECKPOINT, load_sample
from tests.conftest import QuickCli
from tests.fake_gpu import GPU, VERSION, FakeContext, FakeGpu, FakeLogger, FakePlan, FakeRuntimeCache
from tests.test_runtime import PUBLIC

SERIAL = RuntimeOptions(threads=1, streams=1)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeGpu:
    fake = FakeGpu()
    fake.install(monkeypatch, cache=tmp_path / "cache")
    return fake


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeGpu:
    fake = FakeGpu("tensorrt-rtx")
    fake.install(monkeypatch, cache=tmp_path / "cache")
    return fake


@pytest.fixture
def bundle(demo_bundle: Path, tmp_path: Path) -> Path:
    """The demo bundle with its graph as an engine for the fake GPU, verified."""
    return with_engine(demo_bundle, tmp_path / "bundle")


def with_engine(
    bundle: Path,
    target: Path,
    content: bytes | None = None,
    runtime: FlavourName = "tensorrt",
    **changes: Any,
) -> Path:
    if not target.exists():
        shutil.copytree(bundle, target)
    content = content or (bundle / "model.onnx").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    engine = Artifact(
        path=f"engines/{runtime}-fp32-{GPU}-{digest[:8]}.engine",
        sha256=digest,
        runtime=runtime,
        kind="compiled",
        precision="fp32",
        profiles=(Profile(min=1, opt=2, max=4),),
        gpu=GPU,
        versions={runtime: VERSION, "driver": "580.1"},
        verified=True,
        source="model.onnx",
        build=EngineBuild(
            key=digest,
            command="lct-deploy compile",
            layers=1,
            layer_summary={},
            attention="native",
            options={},
        ),
    ).model_copy(update=changes)
    (target / "engines").mkdir(exist_ok=True)
    (target / engine.path).write_bytes(content)
    manifest = json.loads((target / "manifest.json").read_text())
    manifest["artifacts"].append(engine.model_dump(mode="json"))
    (target / "manifest.json").write_text(json.dumps(manifest))
    return target


def opened(bundle: Path, options: RuntimeOptions = SERIAL, name: FlavourName = "tensorrt") -> Runtime:
    return open_bundled(open_bundle(bundle), name, options)


def images(count: int, start: int = 0) -> np.ndarray:
    grey = load_sample().images[start : start + count]
    return np.repeat(grey[..., None], 3, axis=-1)


@pytest.fixture(scope="module")
def expected(demo_bundle: Path) -> Callable[[np.ndarray], np.ndarray]:
    graph = open_artifact("onnxruntime", demo_bundle / "model.onnx", RuntimeOptions(threads=1))
    return graph.infer


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cuda_graphs", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 11])
def test_any_batch_is_answered(
    gpu: FakeGpu, bundle: Path, expected: Callable[..., np.ndarray], count: int, cuda_graphs: bool
) -> None:
    with closing(opened(bundle, RuntimeOptions(streams=1, cuda_graphs=cuda_graphs))) as runtime:
        assert_same(runtime.infer(images(count)), expected(images(count)))
    assert (gpu.driver.launched > 0) == cuda_graphs


def test_each_bucket_is_launched_as_one_graph(gpu: FakeGpu, bundle: Path) -> None:
    with closing(opened(bundle)) as runtime:
        assert runtime.spec.compiled_batches == (1, 2, 4)
        launched = gpu.driver.launched
        runtime.infer(images(11))  # 4 + 4 + 3
        assert gpu.driver.launched == launched + 3


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_an_inference_is_told_in_parts(
    gpu: FakeGpu, bundle: Path, expected: Callable[..., np.ndarray], cuda_graphs: bool
) -> None:
    with closing(opened(bundle, RuntimeOptions(streams=1, cuda_graphs=cuda_graphs))) as runtime:
        held, launched = gpu.driver.live, gpu.driver.launched
        stages = runtime.profile(images(6))  # as four and two
        assert all(value is not None and value > 0 for value in vars(stages).values())
        assert gpu.driver.live == held
        assert gpu.driver.launched - launched == (2 if cuda_graphs else 0)
        assert_same(runtime.infer(images(6, 8)), expected(images(6, 8)))
        with pytest.raises(UsageError, match="expected uint8 images"):
            runtime.profile(images(1)[0])


def test_rtx_makes_its_own_graphs_and_keeps_its_kernels_out_of_the_bundle(
    rtx: FakeGpu, demo_bundle: Path, tmp_path: Path, expected: Callable[..., np.ndarray]
) -> None:
    bundle = with_engine(demo_bundle, tmp_path / "bundle", runtime="tensorrt-rtx")
    before = {path: path.stat().st_mtime_ns for path in bundle.rglob("*")}
    with closing(opened(bundle, name="tensorrt-rtx")) as runtime:
        assert_same(runtime.infer(images(3)), expected(images(3)))
    config = rtx.plans[0].contexts[0].config
    assert (config.cuda_graph_strategy, config.memory) == ("whole", "user")
    assert rtx.driver.launched == 0
    (kept,) = (tmp_path / "cache").iterdir()
    assert kept.read_bytes() == b"kkk"  # one a bucket
    with closing(opened(bundle, name="tensorrt-rtx")):
        assert rtx.plans[1].contexts[0].config.cache.kernels == b"kkkkkk"
    assert {path: path.stat().st_mtime_ns for path in bundle.rglob("*")} == before


def test_rtx_without_cuda_graphs_says_so_to_rtx(rtx: FakeGpu, demo_bundle: Path, tmp_path: Path) -> None:
    bundle = with_engine(demo_bundle, tmp_path / "bundle", runtime="tensorrt-rtx")
    opened(bundle, RuntimeOptions(streams=1, cuda_graphs=False), "tensorrt-rtx").close()
    assert rtx.plans[0].contexts[0].config.cuda_graph_strategy == "disabled"


def test_a_cache_that_cannot_be_written_is_said_and_not_fatal(
    rtx: FakeGpu, demo_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle = with_engine(demo_bundle, tmp_path / "bundle", runtime="tensorrt-rtx")
    (tmp_path / "cache").write_text("a file where the directory should be")
    opened(bundle, name="tensorrt-rtx").close()
    assert "cannot be written" in capfd.readouterr().err


def test_answers_are_copies(gpu: FakeGpu, bundle: Path) -> None:
    with closing(opened(bundle)) as runtime:
        first = runtime.infer(images(2))
        kept = first.copy()
        runtime.infer(images(2, start=5))
        assert np.array_equal(first, kept)
    assert np.array_equal(first, kept)  # nor do they lie in memory that was freed


def test_calls_run_side_by_side_in_lanes_of_their_own(
    gpu: FakeGpu, bundle: Path, expected: Callable[..., np.ndarray]
) -> None:
    counts = [1 + i % 5 for i in range(24)]
    with closing(opened(bundle, RuntimeOptions(streams=3))) as runtime, ThreadPoolExecutor(6) as threads:
        batches = [images(count, start=i) for i, count in enumerate(counts)]
        answers = list(threads.map(runtime.infer, batches))
    assert len(gpu.plans[0].contexts) == 3 * 3
    for batch, answer in zip(batches, answers, strict=True):
        assert_same(answer, expected(batch))


def test_closing_frees_everything_and_waits_for_calls(gpu: FakeGpu, bundle: Path) -> None:
    runtime = opened(bundle, RuntimeOptions(streams=2))
    assert gpu.driver.live > 0
    gate, entered = threading.Event(), threading.Event()
    session: Any = gpu.plans[0].session
    run = session.run

    def slowly(*arguments: Any) -> Any:
        entered.set()
        assert gate.wait(30)
        return run(*arguments)

    session.run = slowly
    with ThreadPoolExecutor(2) as threads:
        call = threads.submit(runtime.infer, images(1))
        assert entered.wait(30)
        closed = threads.submit(runtime.close)
        assert not closed.done()
        gate.set()
        assert call.result(30).shape == (1, 10)
        closed.result(30)
    assert gpu.driver.live == 0
    with pytest.raises(AttributeError):
        runtime.infer(images(1))


ACQUIRING = (
    "cudaStreamCreateWithFlags",
    "cudaMallocHost",
    "cudaMalloc",
    "cudaStreamEndCapture",
    "cudaGraphInstantiate",
)


@pytest.mark.parametrize("call", ACQUIRING)
@pytest.mark.parametrize("number", [1, 2, 4])
def test_what_cannot_be_acquired_frees_what_was(gpu: FakeGpu, bundle: Path, call: str, number: int) -> None:
    gpu.driver.fail(call, "cudaErrorMemoryAllocation", number=number)
    options = RuntimeOptions(streams=4)
    with pytest.raises(DeviceError, match=r"cudaErrorMemoryAllocation: out of memory\n.*--batch 1:8:16"):
        opened(bundle, options)
    assert gpu.driver.live == 0


@pytest.mark.parametrize(
    ("call", "error", "kind", "message"),
    [
        (
            "cudaStreamSynchronize",
            "cudaErrorIllegalAddress",
            DeviceError,
            r"inference: cudaErrorIllegalAddress: .*\n"
            "restart the process",
        ),
        (
            "cudaMemcpyAsync",
            "cudaErrorInvalidValue",
            DeviceError,
            "copying images to the GPU: cudaErrorInvalidValue",
        ),
        (
            "cudaStreamSynchronize",
            "cudaErrorDevicesUnavailable",
            RuntimeUnavailableError,
            r"no NVIDIA GPU.*\nnvidia-smi",
        ),
    ],
)
def test_a_failure_at_work_names_it_and_what_mends_it(
    gpu: FakeGpu, bundle: Path, call: str, error: str, kind: type[Exception], message: str
) -> None:
    with closing(opened(bundle, RuntimeOptions(streams=1, cuda_graphs=False))) as runtime:
        gpu.driver.fail(call, error)
        with pytest.raises(kind, match=message):
            runtime.infer(images(1))
        assert runtime.infer(images(1)).shape == (1, 10)  # the lane is there for the next call
    assert gpu.driver.live == 0


def test_a_capture_that_fails_says_how_to_do_without(gpu: FakeGpu, bundle: Path) -> None:
    gpu.driver.fail("cudaStreamEndCapture", "cudaErrorStreamCaptureInvalidated")
    with pytest.raises(DeviceError, match=r"cudaErrorStreamCaptureInvalidated[\s\S]*--no-cuda-graphs"):
        opened(bundle)


def test_a_batch_that_tensorrt_refuses_comes_with_its_words(gpu: FakeGpu, bundle: Path) -> None:
    with closing(opened(bundle, RuntimeOptions(streams=1, cuda_graphs=False))) as runtime:
        gpu.plans[0].refuses = True
        with pytest.raises(DeviceError, match="does not run this batch: something about this batch"):
            runtime.infer(images(2))


def test_it_is_a_runtime_like_the_others(gpu: FakeGpu, bundle: Path) -> None:
    with closing(opened(bundle)) as runtime:
        assert {n for n in dir(type(runtime)) if not n.startswith("_")} == PUBLIC
        spec = runtime.spec
        assert (spec.runtime, spec.precision, spec.height, spec.num_classes) == ("tensorrt", "fp32", 28, 10)
        assert (spec.device, spec.versions["tensorrt"], spec.streams) == ("Fake GPU", VERSION, 1)
        with pytest.raises(UsageError, match=r"expected uint8 images of shape \(N, 28, 28, 3\)"):
            runtime.infer(np.zeros((1, 2, 2, 3), np.uint8))


def test_an_engine_is_opened_through_its_bundle(gpu: FakeGpu, bundle: Path) -> None:
    with pytest.raises(UsageError, match="open it through its bundle"):
        open_artifact("tensorrt", next((bundle / "engines").iterdir()), SERIAL)


@pytest.mark.parametrize(
    ("changes", "message", "command"),
    [
        (
            {"versions": {"tensorrt": "10.13"}},
            "for tensorrt 10.13, here it is 11.4.0",
            "compile {} --runtime tensorrt --precision fp32 --batch 1:2:4",
        ),
        (
            {"gpu": "sm89,sm120"},
            "for GPUs of sm89,sm120, this one is sm90",
            "--runtime tensorrt --precision fp32",
        ),
        ({"gpu": None}, "for GPUs of None, this one is sm90", "lct-deploy compile"),
        (
            {"verified": False},
            "has not been verified on this GPU",
            "verify {} --runtime tensorrt --precision fp32",
        ),
        (
            {"precision": "fp16"},
            "holds no fp32 engine for tensorrt; it has fp16",
            "lct-deploy compile {} --runtime tensorrt",
        ),
        (
            {"runtime": "tensorrt-rtx"},
            "holds no fp32 engine for tensorrt\n",
            "lct-deploy compile {} --runtime tensorrt",
        ),
    ],
)
def test_engines_that_are_refused(
    gpu: FakeGpu, demo_bundle: Path, tmp_path: Path, changes: dict[str, Any], message: str, command: str
) -> None:
    bundle = with_engine(demo_bundle, tmp_path / "bundle", **changes)
    with pytest.raises(BundleError) as refused:
        opened(bundle)
    assert message in str(refused.value)
    assert refused.value.hint is not None
    assert command.format(bundle) in refused.value.hint
    assert not gpu.plans


@pytest.mark.parametrize(
    ("options", "built", "gpu", "fits"),
    [
        ({}, VERSION, GPU, True),
        ({}, "11.3.9", GPU, False),
        ({}, VERSION, "sm80", False),
        ({"version compatible": "yes"}, "11.3.9", GPU, True),
        ({"version compatible": "yes"}, "11.3.9.post1", GPU, True),
        ({"version compatible": "yes"}, "11.10.0", GPU, False),
        ({"version compatible": "yes"}, "10.13.0", GPU, False),
        ({"hardware compatible": "yes"}, VERSION, "sm80", True),
        ({"hardware compatible": "yes"}, "11.3.9", GPU, False),
    ],
)
def test_compatible_engines_run_in_more_places(
    options: dict[str, str], built: str, gpu: str, fits: bool
) -> None:
    engine = described(options, built, gpu)
    assert (not misfits(engine, Place(version=VERSION, gpu=GPU))) == fits
    again = compile_command(Path("b"), engine)
    assert ("--version-compatible" in again) == ("version compatible" in options)
    assert ("--hardware-compatible" in again) == ("hardware compatible" in options)


def test_a_rebuild_looks_as_long_for_fast_kernels() -> None:
    assert compile_command(Path("b"), described({"opt level": "2"}, VERSION, GPU)).endswith(" --opt-level 2")


def test_hardware_compatible_engines_want_an_ampere_gpu_at_least() -> None:
    engine = described({"hardware compatible": "yes"}, VERSION, GPU)
    assert "this one is sm75" in str(misfits(engine, Place(version=VERSION, gpu="sm75")))


def described(options: dict[str, str], version: str, gpu: str) -> Artifact:
    build = EngineBuild(
        key="0" * 64, command="", layers=1, layer_summary={}, attention="native", options=options
    )
    return Artifact(
        path="engines/x.engine",
        sha256="0" * 64,
        runtime="tensorrt",
        kind="compiled",
        precision="fp32",
        profiles=(Profile(),),
        gpu=gpu,
        versions={"tensorrt": version},
        verified=True,
        build=build,
    )


def test_the_rebuild_of_an_rtx_engine_names_this_gpu_and_every_profile(
    rtx: FakeGpu, demo_bundle: Path, tmp_path: Path
) -> None:
    build = EngineBuild(key="0" * 64, command="", layers=1, layer_summary={}, attention="plugin", options={})
    profiles = (Profile(min=1, opt=1, max=1), Profile(min=2, opt=8, max=64))
    bundle = with_engine(
        demo_bundle, tmp_path / "bundle", runtime="tensorrt-rtx", gpu="sm86", profiles=profiles, build=build
    )
    with pytest.raises(BundleError, match="--batch 1:1:1,2:8:64 --attention plugin --gpu sm90"):
        opened(bundle, name="tensorrt-rtx")


@pytest.mark.parametrize("kept", [slice(0, 1000), slice(100, None), slice(0, 1)])
def test_a_damaged_engine_whose_hash_is_right_is_refused_in_its_own_words(
    gpu: FakeGpu, demo_bundle: Path, tmp_path: Path, kept: slice
) -> None:
    bundle = with_engine(demo_bundle, tmp_path / "bundle", (demo_bundle / "model.onnx").read_bytes()[kept])
    with pytest.raises(
        BundleError, match=r"tensorrt cannot load this engine: the plan is damaged[\s\S]*compile"
    ):
        opened(bundle)


def test_too_little_memory_to_load_an_engine_is_not_said_to_be_damage(gpu: FakeGpu, bundle: Path) -> None:
    gpu.lacks_memory = True
    with pytest.raises(DeviceError, match=r"cannot load this engine: .*OutOfMemory[\s\S]*serve --streams 1"):
        opened(bundle)


def test_tensorrt_is_asked_for_contexts_as_its_first_versions_are(gpu: FakeGpu, bundle: Path) -> None:
    opened(bundle).close()
    assert {context.config for context in gpu.plans[0].contexts} == {"user"}


def test_an_engine_that_changed_after_it_was_built_is_not_opened(gpu: FakeGpu, bundle: Path) -> None:
    engine = next((bundle / "engines").iterdir())
    engine.write_bytes(engine.read_bytes() + b"\0")
    command = (
        rf"lct-deploy compile {re.escape(str(bundle))} --runtime tensorrt --precision fp32 --batch 1:2:4$"
    )
    with pytest.raises(BundleError, match=rf"has changed since it was verified .*\n{command}"):
        opened(bundle)
    engine.unlink()
    with pytest.raises(BundleError, match=rf"is missing\n{command}"):
        opened(bundle)


def test_the_engine_compiled_last_is_taken(gpu: FakeGpu, demo_bundle: Path, tmp_path: Path) -> None:
    bundle = with_engine(demo_bundle, tmp_path / "bundle", shifted(demo_bundle, 100.0))
    with_engine(demo_bundle, bundle)
    with_engine(demo_bundle, bundle, shifted(demo_bundle, -100.0), gpu="sm89")
    with closing(opened(bundle)) as runtime:
        assert abs(runtime.infer(images(1))).max() < 50


def shifted(bundle: Path, by: float) -> bytes:
    """The bundle's graph with `by` added to every logit."""
    model = onnx.load(bundle / "model.onnx")
    bias = next(t for t in model.graph.initializer if t.name.endswith("fc.bias"))
    values = numpy_helper.to_array(bias) + np.float32(by)
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    return model.SerializeToString()


def test_verify_lets_an_engine_be_served(
    gpu: FakeGpu, demo_bundle: Path, tmp_path: Path, quick_cli: QuickCli
) -> None:
    bundle = with_engine(demo_bundle, tmp_path / "bundle", verified=False)
    predict = ("predict", bundle, demo_image(tmp_path), "--runtime", "tensorrt")
    refused = quick_cli(*predict)
    assert refused.returncode == 1
    assert f"lct-deploy verify {bundle} --runtime tensorrt --precision fp32" in refused.stderr
    done = quick_cli("verify", bundle, "--runtime", "tensorrt")
    assert done.returncode == 0, done.stderr
    assert "golden logits agree on tensorrt" in done.stdout
    manifest = open_bundle(bundle).manifest
    assert manifest.artifacts[-1].verified
    assert manifest.commands[-1] == f"lct-deploy verify {bundle} --runtime tensorrt"
    predicted = quick_cli(*predict, "--json")
    assert json.loads(predicted.stdout)["images"][0]["predictions"][0]["label"] == "Ankle boot"
    again = quick_cli("verify", bundle, "--runtime", "tensorrt")
    assert again.returncode == 0
    assert open_bundle(bundle).manifest == manifest
    assert gpu.driver.live == 0


def test_verify_of_an_engine_that_answers_wrongly_leaves_it_unverified(
    gpu: FakeGpu, demo_bundle: Path, tmp_path: Path, quick_cli: QuickCli
) -> None:
    bundle = with_engine(demo_bundle, tmp_path / "bundle", shifted(demo_bundle, 0.1), verified=False)
    before = (bundle / "manifest.json").read_bytes()
    done = quick_cli("verify", bundle, "--runtime", "tensorrt")
    assert done.returncode == 1
    assert "does not give PyTorch's answers on this machine" in done.stderr
    assert (bundle / "manifest.json").read_bytes() == before
    assert gpu.driver.live == 0


def test_an_engine_is_compared_with_its_checkpoint_by_its_logits(gpu: FakeGpu, bundle: Path) -> None:
    (report,) = verify_bundle(open_bundle(bundle), DEMO_CHECKPOINT, None, "tensorrt")
    assert report.passed
    assert (report.runtime, report.gates) == ("tensorrt", ())
    assert report.artifact.endswith(".engine")
    assert gpu.driver.live == 0


def demo_image(directory: Path) -> Path:
    from PIL import Image

    Image.fromarray(images(1)[0]).save(directory / "boot.png")
    return directory / "boot.png"


@pytest.mark.parametrize(
    ("fake", "real"),
    [
        (FakePlan, "ICudaEngine"),
        (FakeContext, "IExecutionContext"),
        (FakeRuntimeCache, "IRuntimeCache"),
        (FakeLogger, "ILogger"),
    ],
)
def test_the_fake_has_no_method_that_tensorrt_lacks(fake: type, real: str) -> None:
    known = dir(getattr(load_flavour("tensorrt-rtx").module, real))
    assert {name for name in vars(fake) if not name.startswith("_")} <= set(known)


def test_what_the_fake_configures_tensorrt_has() -> None:
    trt = load_flavour("tensorrt-rtx").module
    assert {"set_execution_context_allocation_strategy", "create_runtime_cache", "set_runtime_cache"} <= set(
        dir(trt.IRuntimeConfig)
    )
    assert {"cuda_graph_strategy", "dynamic_shapes_kernel_specialization_strategy"} <= set(
        dir(trt.IRuntimeConfig)
    )
    assert trt.ExecutionContextAllocationStrategy.USER_MANAGED
    assert trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE != trt.CudaGraphStrategy.DISABLED
    assert trt.DynamicShapesKernelSpecializationStrategy.EAGER
    assert "engine_host_code_allowed" in dir(trt.Runtime)


without_gpu = pytest.mark.skipif(gpu_capability() is not None, reason="there is a GPU")


@pytest.fixture(scope="module")
def rtx_bundle(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo bundle with an engine that TensorRT-RTX has built from its graph."""
    flavour = load_flavour("tensorrt-rtx")
    options = BuildOptions(profiles=(Profile(min=1, opt=2, max=4),), gpus=("sm89",))
    graph = spell_out(cast_first(onnx.load(demo_bundle / "model.onnx")))
    built = build_engine(graph, options, flavour=flavour, announce=lambda _: None)
    target = tmp_path_factory.mktemp("rtx") / "demo"
    versions = {"tensorrt-rtx": flavour.version}
    return with_engine(demo_bundle, target, built.engine, "tensorrt-rtx", gpu="sm89", versions=versions)


@without_gpu
@pytest.mark.parametrize("command", ["predict", "verify", "serve"])
def test_without_a_gpu_an_engine_is_refused_with_cudas_reason(
    rtx_bundle: Path, tmp_path: Path, quick_cli: QuickCli, command: str
) -> None:
    given = [demo_image(tmp_path)] if command == "predict" else []
    done = quick_cli(command, rtx_bundle, *given, "--runtime", "tensorrt-rtx")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: no NVIDIA GPU can be used here: cudaError")
    assert "nvidia-smi" in done.stderr


@without_gpu
def test_a_real_engine_that_cannot_be_deserialized_is_refused_in_tensorrts_words(rtx_bundle: Path) -> None:
    engine = next((rtx_bundle / "engines").iterdir())
    with pytest.raises(BundleError, match=r"tensorrt-rtx cannot load this engine: .+\nlct-deploy compile"):
        load_engine(engine, load_flavour("tensorrt-rtx"), rebuild="lct-deploy compile BUNDLE")


def test_without_tensorrt_the_extra_is_named(demo_bundle: Path, tmp_path: Path, quick_cli: QuickCli) -> None:
    if find_spec("tensorrt") is not None:
        pytest.skip("tensorrt is installed")
    bundle = with_engine(demo_bundle, tmp_path / "bundle")
    done = quick_cli("verify", bundle, "--runtime", "tensorrt")
    assert (done.returncode, done.stdout) == (1, "")
    assert "the package tensorrt is not installed\npip install 'lct-deploy[gpu]'" in done.stderr
