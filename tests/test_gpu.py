"""On a real GPU: what engines, providers and the plugin answer there, beside PyTorch on the same GPU.

`pytest -m gpu`; without a GPU all of it is skipped. `LCT_LEAK_MINUTES` shortens the leak check's five.
"""

import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.stages import median_stages
from exporters.options import CalibrationOptions, ExportOptions
from exporters.tensorrt.compile import compile_engine
from exporters.tensorrt.options import BuildOptions
from lct_deploy.bundle import open_bundle
from lct_deploy.checkpoint import load_checkpoint
from lct_deploy.errors import BundleError, LctDeployError, RuntimeUnavailableError
from lct_deploy.manifest import Precision, Profile
from lct_deploy.models.classifier import ImageClassifier
from lct_deploy.parity import MAX_LOGIT_ERROR, compare_logits
from lct_deploy.runtime import Runtime, RuntimeOptions, open_bundled
from lct_deploy.runtime.base import milliseconds_of
from lct_deploy.runtime.flavours import FlavourName, gpu_capability, load_flavour
from lct_deploy.sample import DEMO_CHECKPOINT
from tests.conftest import QuickCli, export
from tests.test_compile import save_images

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(gpu_capability() is None, reason="no NVIDIA GPU, driver or cuda-bindings here"),
]

# PyTorch's compiler warns of itself, and of float32 being float32.
compiles = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:TensorFloat32 tensor cores")

BATCHES = Profile(min=1, opt=8, max=16)
# Largest error of a logit as a share of the largest logit; 16-bit and integer types twice what the
# shipped checkpoint shows with every result rounded on the CPU.
LIMITS: dict[Precision, float] = {
    **MAX_LOGIT_ERROR,
    "tf32": 5e-3,
    "fp16": 1e-2,
    "bf16": 6e-2,
    "int8": 1.5e-1,
    "fp8": 1.5e-1,
}
NATIVE: tuple[Precision, ...] = ("fp32", "tf32", "fp16", "bf16")


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt-rtx"])
def flavour(request: pytest.FixtureRequest) -> FlavourName:
    """A TensorRT that is installed and knows this GPU."""
    name: FlavourName = request.param
    try:
        trt = load_flavour(name).module
    except RuntimeUnavailableError as error:
        pytest.skip(str(error).splitlines()[0])
    if int((gpu_capability() or "sm0")[2:]) < 80:
        pytest.skip(f"{gpu_capability()} has neither tf32 nor bf16")
    if name == "tensorrt-rtx" and (gpu_capability() or "").upper() not in trt.ComputeCapability.__members__:
        pytest.skip(f"TensorRT-RTX does not know {gpu_capability()}")
    return name


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gpu")


@pytest.fixture(scope="module")
def engines(flavour: FlavourName, demo_bundle: Path, work: Path) -> Path:
    """The demo bundle with an engine of every precision that needs no calibration."""
    path = Path(shutil.copytree(demo_bundle, work / flavour))
    for precision in NATIVE:
        build(path, flavour, precision)
    return path


def build(bundle: Path, flavour: FlavourName, precision: Precision, **options: Any) -> None:
    chosen = BuildOptions(precision=precision, profiles=(BATCHES,), **options)
    compile_engine(
        open_bundle(bundle),
        flavour,
        chosen,
        images=None,
        command="lct-deploy compile",
        announce=lambda _: None,
    )


def images(count: int = 16) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 28, 28, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def reference() -> Any:
    """PyTorch on this GPU, in float32 without tf32."""
    if not torch.cuda.is_available():
        pytest.skip(f"torch {torch.__version__} has no CUDA")
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # pyright: ignore[reportAttributeAccessIssue]
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    loaded = load_checkpoint(DEMO_CHECKPOINT)
    assert loaded.metadata is not None
    classifier = ImageClassifier(loaded.model, loaded.metadata.preprocessing).eval().cuda()

    def infer(batch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return classifier(torch.from_numpy(batch).cuda()).cpu().numpy()

    return infer


def opened(bundle: Path, name: str, precision: Precision = "fp32", **options: Any) -> Runtime:
    return open_bundled(open_bundle(bundle), name, RuntimeOptions(**options), precision)


def assert_agrees(found: np.ndarray, expected: np.ndarray, precision: Precision) -> None:
    error = compare_logits(expected, found, None).max_rel_error
    assert error <= LIMITS[precision], f"{precision}: {error:.2e} of the largest logit"


@pytest.mark.parametrize("precision", NATIVE)
def test_engines_give_pytorchs_logits(
    engines: Path, flavour: FlavourName, reference: Any, precision: Precision
) -> None:
    with closing(opened(engines, flavour, precision)) as runtime:
        assert runtime.spec.compiled_batches == (1, 2, 4, 8, 16)
        for count in (1, 3, 8, 16, 37):
            assert_agrees(runtime.infer(images(count)), reference(images(count)), precision)


def test_the_parts_of_an_inference_make_up_the_whole(engines: Path, flavour: FlavourName) -> None:
    with closing(opened(engines, flavour)) as runtime:
        whole = min(milliseconds_of(lambda: runtime.infer(images(16))) for _ in range(20))
        stages = median_stages(runtime.profile, images(16))
    parts = [stages.host_to_device, stages.compute, stages.device_to_host]
    assert all(part is not None and part > 0 for part in (*parts, stages.enqueue))
    # Without its graph the network takes longer; with it the host copies the images once more.
    assert 0.2 * whole < sum(part or 0 for part in parts) < 20 * whole


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_quantized_engines_agree_with_pytorch(
    flavour: FlavourName, work: Path, reference: Any, precision: Precision
) -> None:
    if precision == "fp8" and int((gpu_capability() or "sm0")[2:]) < 89:
        pytest.skip(f"{gpu_capability()} has no fp8")
    directory = work / f"{flavour}-{precision}"
    directory.mkdir()
    calibration = CalibrationOptions(data=str(save_images(directory / "images", 64)))
    export(
        DEMO_CHECKPOINT,
        directory / "demo",
        ExportOptions(precision=precision, target="tensorrt", calibration=calibration),
    )
    build(directory / "demo", flavour, precision)
    golden = open_bundle(directory / "demo").golden()
    with closing(opened(directory / "demo", flavour, precision)) as runtime:
        assert_agrees(runtime.infer(golden.images), golden.logits, precision)
        assert_agrees(runtime.infer(golden.images), reference(golden.images), precision)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_plugin_gives_what_the_operators_give(
    engines: Path, flavour: FlavourName, work: Path, precision: Precision
) -> None:
    bundle = Path(shutil.copytree(engines, work / f"{flavour}-plugin-{precision}"))
    with closing(opened(bundle, flavour, precision)) as native:
        expected = native.infer(images())
    build(bundle, flavour, precision, attention="plugin")
    with closing(opened(bundle, flavour, precision)) as plugin:
        assert_agrees(plugin.infer(images()), expected, precision)


def test_cuda_graphs_change_nothing(engines: Path, flavour: FlavourName) -> None:
    with (
        closing(opened(engines, flavour, streams=1)) as graphs,
        closing(opened(engines, flavour, streams=1, cuda_graphs=False)) as single,
    ):
        for count in (1, 5, 16, 20):
            assert np.array_equal(graphs.infer(images(count)), single.infer(images(count)))


def test_streams_do_not_see_each_other(engines: Path, flavour: FlavourName) -> None:
    batches = [images(1 + i % 17) for i in range(200)]
    with closing(opened(engines, flavour, streams=1)) as alone:
        expected = [alone.infer(batch) for batch in batches]
    with closing(opened(engines, flavour, streams=4)) as several, ThreadPoolExecutor(4) as threads:
        found = list(threads.map(several.infer, batches))
    for a, b in zip(expected, found, strict=True):
        assert np.array_equal(a, b)


def test_a_truncated_engine_is_refused_with_the_command(
    engines: Path, flavour: FlavourName, work: Path
) -> None:
    import hashlib

    bundle = Path(shutil.copytree(engines, work / f"{flavour}-truncated"))
    manifest = json.loads((bundle / "manifest.json").read_text())
    artifact = next(a for a in manifest["artifacts"] if (a["kind"], a["precision"]) == ("compiled", "fp32"))
    content = (bundle / artifact["path"]).read_bytes()[:-1000]
    (bundle / artifact["path"]).write_bytes(content)
    artifact["sha256"] = hashlib.sha256(content).hexdigest()
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"cannot load this engine: [\s\S]+lct-deploy compile"):
        opened(bundle, flavour)


def test_an_engine_that_needs_more_memory_than_there_is_says_so(
    engines: Path, flavour: FlavourName, work: Path
) -> None:
    from lct_deploy.runtime import cuda

    with (
        cuda.device_memory(cuda.free_memory() - (64 << 20), "this test"),
        pytest.raises(LctDeployError, match=r"(?i)memory[\s\S]*(--streams|--batch)"),
    ):
        opened(engines, flavour, streams=64)


def test_verify_serve_and_predict_know_the_engine(
    engines: Path, flavour: FlavourName, quick_cli: QuickCli, tmp_path: Path
) -> None:
    from PIL import Image

    bundle = Path(shutil.copytree(engines, tmp_path / "demo"))
    manifest = json.loads((bundle / "manifest.json").read_text())
    for artifact in manifest["artifacts"]:
        artifact["verified"] = artifact["kind"] == "graph"
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    Image.fromarray(open_bundle(bundle).golden().images[0]).save(tmp_path / "image.png")
    assert "lct-deploy verify" in quick_cli("serve", bundle, "--runtime", flavour, "--port", "0").stderr
    assert quick_cli("verify", bundle, "--runtime", flavour).returncode == 0
    done = quick_cli("predict", bundle, tmp_path / "image.png", "--runtime", flavour, "--json")
    assert json.loads(done.stdout)["runtime"] == flavour


@compiles
def test_the_fused_operator_gives_what_the_module_gives(reference: Any) -> None:
    pytest.importorskip("triton")
    from lct_deploy.kernels.gpu.torch_operator import fuse_attention

    loaded = load_checkpoint(DEMO_CHECKPOINT)
    assert loaded.metadata is not None
    fused = ImageClassifier(fuse_attention(loaded.model), loaded.metadata.preprocessing).eval().cuda()
    for run in (fused, torch.compile(fused)):
        with torch.inference_mode():
            found = run(torch.from_numpy(images()).cuda()).cpu().numpy()
        assert_agrees(found, reference(images()), "fp32")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_onnxruntime_on_the_gpu(
    demo_bundle: Path, work: Path, reference: Any, provider: str, precision: Precision
) -> None:
    bundle = demo_bundle
    if precision == "fp16":
        bundle = work / f"onnxruntime-{provider}"
        export(DEMO_CHECKPOINT, bundle, ExportOptions(precision="fp16"))
    try:
        runtime = opened(bundle, "onnxruntime", precision, provider=provider)
    except RuntimeUnavailableError as error:
        pytest.skip(str(error).splitlines()[0])
    with closing(runtime):
        for count in (1, 7, 16):
            assert_agrees(runtime.infer(images(count)), reference(images(count)), precision)


def test_nothing_is_left_behind_by_opening_running_and_closing(engines: Path, flavour: FlavourName) -> None:
    """Memory of GPU and process after the first minute and at the end; five minutes in all."""
    from lct_deploy.runtime import cuda

    seconds = 60 * float(os.environ.get("LCT_LEAK_MINUTES", "5"))
    started = time.monotonic()

    def work_for(end: float) -> tuple[int, int]:
        while time.monotonic() - started < end:
            with (
                closing(opened(engines, flavour, "fp16", streams=2)) as runtime,
                ThreadPoolExecutor(4) as threads,
            ):
                list(threads.map(runtime.infer, [images(1 + i % 20) for i in range(500)]))
        return cuda.free_memory(), resident_bytes()

    free, resident = work_for(seconds / 5)
    free_after, resident_after = work_for(seconds)
    assert free - free_after < 32 << 20
    assert resident_after - resident < 64 << 20


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
