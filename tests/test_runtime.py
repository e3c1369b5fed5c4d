"""Every runtime behind the one protocol: the same answers, the same refusals."""

import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from lct_deploy.bundle import open_bundle
from lct_deploy.errors import BundleError, ParityError, RuntimeUnavailableError, UsageError
from lct_deploy.golden import check_golden
from lct_deploy.predictions import top_k
from lct_deploy.runtime import Runtime, RuntimeOptions, open_artifact
from lct_deploy.runtime.base import ProviderName, Stages
from lct_deploy.runtime.onnxruntime import profile_bound, run_bound
from lct_deploy.sample import DEMO_CHECKPOINT
from tests.conftest import QuickCli

PUBLIC = {"open", "infer", "profile", "spec", "close"}


@pytest.fixture(params=["onnxruntime", "openvino", "torch"])
def runtime(request: pytest.FixtureRequest, demo_bundle: Path, openvino_bundle: Path) -> Runtime:
    path = {
        "onnxruntime": demo_bundle / "model.onnx",
        "openvino": openvino_bundle / "fp32-openvino.onnx",
        "torch": DEMO_CHECKPOINT,
    }[request.param]
    return open_artifact(request.param, path, RuntimeOptions(threads=1))


def test_it_answers_the_golden_inputs(runtime: Runtime, demo_bundle: Path) -> None:
    parity = check_golden(open_bundle(demo_bundle), runtime)
    assert parity.top1_agreement == 1.0
    assert parity.max_abs_limit is not None
    assert parity.max_abs_error <= parity.max_abs_limit


def test_it_says_what_it_takes_and_what_runs_it(runtime: Runtime) -> None:
    spec = runtime.spec
    assert (spec.height, spec.width, spec.num_classes, spec.precision) == (28, 28, 10, "fp32")
    assert "cpu" in spec.device.lower()
    assert spec.versions[spec.runtime]


def test_it_has_the_public_methods_of_the_protocol_and_no_other(runtime: Runtime) -> None:
    assert {name for name in dir(type(runtime)) if not name.startswith("_")} == PUBLIC


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 28, 28, 3), np.float32),
        np.zeros((28, 28, 3), np.uint8),
        np.zeros((1, 3, 28, 28), np.uint8),
        np.zeros((1, 32, 32, 3), np.uint8),
        np.zeros((0, 28, 28, 3), np.uint8),
    ],
)
def test_it_refuses_other_inputs(runtime: Runtime, images: np.ndarray) -> None:
    with pytest.raises(UsageError, match=r"expected uint8 images of shape \(N, 28, 28, 3\)"):
        runtime.infer(images)


def test_it_can_be_closed(runtime: Runtime) -> None:
    runtime.close()
    with pytest.raises(AttributeError):
        runtime.infer(np.zeros((1, 28, 28, 3), np.uint8))


def test_an_unknown_runtime_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"unknown runtime 'jax'[\s\S]*onnxruntime, tensorrt, tensorrt-rtx, openvino, torch"
    ):
        open_artifact("jax", DEMO_CHECKPOINT, RuntimeOptions())


@pytest.mark.parametrize(
    ("provider", "name"), [("cuda", "CUDAExecutionProvider"), ("tensorrt", "TensorrtExecutionProvider")]
)
def test_a_provider_that_is_not_there_is_refused_and_not_replaced(
    demo_bundle: Path, provider: ProviderName, name: str
) -> None:
    with pytest.raises(RuntimeUnavailableError, match=rf"no {name} here[\s\S]*lct-deploy\[gpu\]"):
        open_artifact("onnxruntime", demo_bundle / "model.onnx", RuntimeOptions(provider=provider))


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_onnxruntime_goes_on_without_is_refused(
    demo_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where its libraries are installed and the driver is not: onnxruntime then takes the CPU."""
    claimed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: claimed)
    with pytest.raises(
        RuntimeUnavailableError, match=r"cannot start its CUDA.*run on CPUExecutionProvider instead\n.*driver"
    ):
        open_artifact("onnxruntime", demo_bundle / "model.onnx", RuntimeOptions(provider="cuda"))


def test_the_tensorrt_provider_has_tensorrt_loaded_for_it(
    demo_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its wheel keeps the libraries where only importing it finds them; float32 stays float32."""
    if find_spec("tensorrt") is not None:
        pytest.skip("tensorrt is installed")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "")  # which is undone with the test
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    claimed = ["TensorrtExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: claimed)
    with pytest.raises(RuntimeUnavailableError, match=r"tensorrt is not installed\npip install"):
        open_artifact("onnxruntime", demo_bundle / "model.onnx", RuntimeOptions(provider="tensorrt"))
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"


def test_input_and_output_may_be_bound(demo_bundle: Path) -> None:
    """The way to a GPU's memory and back, with the CPU's."""
    session = onnxruntime.InferenceSession(demo_bundle / "model.onnx", providers=["CPUExecutionProvider"])
    images = open_bundle(demo_bundle).golden().images[:3]
    (expected,) = session.run(["logits"], {"image": images})
    assert np.array_equal(run_bound(session, images, "cpu"), np.asarray(expected))
    parts = profile_bound(session, images, "cpu")
    assert parts.enqueue is None
    assert all(value is not None and value > 0 for name, value in vars(parts).items() if name != "enqueue")


def test_on_a_cpu_all_of_an_inference_is_computing(runtime: Runtime) -> None:
    size = runtime.spec.height
    stages = runtime.profile(np.zeros((2, size, size, 3), np.uint8))
    assert stages.compute is not None
    assert stages == Stages(compute=stages.compute)
    with pytest.raises(UsageError):
        runtime.profile(np.zeros((2, size + 1, size, 3), np.uint8))


def test_tensorrt_as_a_provider_takes_the_graph_that_is_spelled_for_it(
    demo_bundle: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    shutil.copy(bundle / "model.onnx", bundle / "spelled.onnx")
    manifest = json.loads((bundle / "manifest.json").read_text())
    portable = manifest["artifacts"][0]
    manifest["artifacts"].append({**portable, "path": "spelled.onnx", "runtime": "tensorrt"})
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    opened = open_bundle(bundle)
    assert opened.artifact("onnxruntime", spelled_for="tensorrt").path == "spelled.onnx"
    assert opened.artifact("onnxruntime").path == "model.onnx"
    assert open_bundle(demo_bundle).artifact("onnxruntime", spelled_for="tensorrt").path == "model.onnx"


@pytest.mark.parametrize(
    ("arguments", "variables", "code", "message"),
    [
        (["predict", "BUNDLE", "x.png", "--provider", "cuda"], {}, 1, "no CUDAExecutionProvider here"),
        (["predict", "BUNDLE", "x.png"], {"LCT_PROVIDER": "cuda"}, 1, "no CUDAExecutionProvider here"),
        (["verify", "BUNDLE", "--provider", "cuda"], {}, 1, "no CUDAExecutionProvider here"),
        (["serve", "BUNDLE"], {"LCT_PROVIDER": "cuda"}, 1, "no CUDAExecutionProvider here"),
        (["predict", "BUNDLE", "x.png"], {"LCT_PROVIDER": "gpu"}, 2, "providers are cpu, cuda, tensorrt"),
        (["serve", "BUNDLE", "--provider", "gpu"], {}, 2, "provider"),
        (["verify", "BUNDLE", "--checkpoint", "x.pt", "--provider", "cuda"], {}, 2, "drop --provider"),
        (["verify", "BUNDLE", "--bisect", "--provider", "cuda"], {}, 2, "drop --provider"),
        (
            ["predict", "BUNDLE", "x.png", "--runtime", "tensorrt", "--provider", "cuda"],
            {},
            2,
            "drop --provider",
        ),
        (["serve", "BUNDLE", "--streams", "0"], {}, 2, "streams"),
    ],
)
def test_what_a_provider_cannot_do_is_said(
    quick_cli: QuickCli,
    monkeypatch: pytest.MonkeyPatch,
    demo_bundle: Path,
    arguments: list[str],
    variables: dict[str, str],
    code: int,
    message: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    done = quick_cli(*[demo_bundle if a == "BUNDLE" else a for a in arguments])
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match="onnxruntime cannot load it"):
        open_artifact("onnxruntime", tmp_path / "model.onnx", RuntimeOptions())


class Wrong:
    """A runtime that answers, but not with PyTorch's numbers."""

    def __init__(self, honest: Runtime, error: float) -> None:
        self._honest, self._error = honest, error
        self.spec = honest.spec

    def infer(self, images: np.ndarray) -> np.ndarray:
        return self._honest.infer(images) + np.float32(self._error)


@pytest.mark.parametrize(("error", "message"), [(1.0, "does not give PyTorch's answers"), (np.nan, "NaN")])
def test_wrong_golden_logits_are_an_error(
    runtime: Runtime, demo_bundle: Path, error: float, message: str
) -> None:
    with pytest.raises(ParityError, match=message):
        check_golden(open_bundle(demo_bundle), Wrong(runtime, error))  # pyright: ignore[reportArgumentType]


def test_top_k_orders_by_probability_and_breaks_ties_by_index() -> None:
    logits = np.log(np.array([[0.1, 0.2, 0.2, 0.5]], np.float32))
    best = top_k(logits, ("a", "b", "c", "d"), 3)[0]
    assert [(p.index, p.label) for p in best] == [(3, "d"), (1, "b"), (2, "c")]
    assert [p.probability for p in best] == pytest.approx([0.5, 0.2, 0.2], abs=1e-6)


def test_top_k_of_huge_logits_is_finite() -> None:
    best = top_k(np.array([[1e4, -1e4]], np.float32), ("a", "b"), 2)[0]
    assert [p.probability for p in best] == [1.0, 0.0]
