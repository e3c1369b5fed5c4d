"""ONNX Runtime: portable and compiled graphs on the CPU, graphs on NVIDIA GPUs through its providers."""

import os
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from lct_deploy.errors import BundleError, RuntimeUnavailableError
from lct_deploy.kernels.cpu import op_library
from lct_deploy.manifest import PRECISION_KEY, Artifact, Precision
from lct_deploy.runtime.base import (
    ProviderName,
    RuntimeOptions,
    RuntimeSpec,
    Stages,
    check_images,
    milliseconds_of,
)
from lct_deploy.runtime.cache import cache_directory
from lct_deploy.runtime.flavours import load_flavour

# name → onnxruntime's name, and where its tensors lie
_PROVIDERS: dict[ProviderName, tuple[str, str]] = {
    "cpu": ("CPUExecutionProvider", "cpu"),
    "cuda": ("CUDAExecutionProvider", "cuda"),
    "tensorrt": ("TensorrtExecutionProvider", "cuda"),
}


class OnnxRuntime:
    """An InferenceSession on a graph of ours (`image` in, `logits` out)."""

    def __init__(self, session: onnxruntime.InferenceSession, spec: RuntimeSpec, memory: str) -> None:
        self._session = session
        self._spec = spec
        self._memory = memory

    @classmethod
    def open(cls, path: Path, options: RuntimeOptions, artifact: Artifact | None = None) -> Self:
        session = open_session(path, options, artifact)
        return cls(session, _spec(session), _PROVIDERS[options.provider][1])

    @property
    def spec(self) -> RuntimeSpec:
        return self._spec

    def infer(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        check_images(images, self._spec)
        if self._memory == "cpu":
            outputs = cast("list[Any]", self._session.run(["logits"], {"image": images}))
            return outputs[0]
        return run_bound(self._session, images, self._memory)

    def profile(self, images: NDArray[np.uint8]) -> Stages:
        if self._memory == "cpu":
            return Stages(compute=milliseconds_of(lambda: self.infer(images)))
        check_images(images, self._spec)
        return profile_bound(self._session, images, self._memory)

    def close(self) -> None:
        del self._session


def open_session(
    path: Path, options: RuntimeOptions, artifact: Artifact | None = None
) -> onnxruntime.InferenceSession:
    """Raises BundleError for a graph that does not load, RuntimeUnavailableError for a missing provider."""
    provider, _ = _PROVIDERS[options.provider]
    check_available(provider)
    # What it fails to load it prints, where a caller expects one document and nothing else.
    with redirect_stdout(sys.stderr):
        session = _session(path, options, artifact)
    _check_chosen(provider, session.get_providers())
    return session


def _session(path: Path, options: RuntimeOptions, artifact: Artifact | None) -> onnxruntime.InferenceSession:
    _load_libraries(options.provider)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    # A bundle's compiled graphs are sessions of their own: the threads of one must not spin, in
    # wait for more work, on the cores where another is computing.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    if library := op_library():
        settings.register_custom_ops_library(str(library))
    settings.log_severity_level = 3  # errors; warnings about unused initialisers are noise
    providers = _providers(options.provider, artifact)
    try:
        return onnxruntime.InferenceSession(str(path), settings, providers=providers)
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        raise BundleError(f"{path}: onnxruntime cannot load it: {error}") from error


def _load_libraries(provider: ProviderName) -> None:
    """CUDA, cuDNN and TensorRT lie where pip has put them, and the provider's loader does not look there.

    Raises RuntimeUnavailableError where TensorRT is not installed.
    """
    if provider != "cpu":
        onnxruntime.preload_dlls(directory="")
    if provider == "tensorrt":
        # It lets TensorRT round float32 to tf32, which is over the limit of fp32 and has no option.
        os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
        load_flavour("tensorrt")


def run_bound(
    session: onnxruntime.InferenceSession, images: NDArray[np.uint8], memory: str
) -> NDArray[np.float32]:
    """Run with input and output in `memory`: one copy there and one back, where the images need them."""
    binding = _bound(session, onnxruntime.OrtValue.ortvalue_from_numpy(images, memory, 0), memory)
    session.run_with_iobinding(binding)
    return cast("list[Any]", binding.copy_outputs_to_cpu())[0]


def profile_bound(session: onnxruntime.InferenceSession, images: NDArray[np.uint8], memory: str) -> Stages:
    """The same, part by part: each returns when it is done, so that the host's clock tells them apart."""
    clock = time.perf_counter
    times = [clock()]
    there = onnxruntime.OrtValue.ortvalue_from_numpy(images, memory, 0)
    times.append(clock())
    binding = _bound(session, there, memory)
    session.run_with_iobinding(binding)
    binding.synchronize_outputs()
    times.append(clock())
    binding.copy_outputs_to_cpu()
    times.append(clock())
    there_ms, compute, back = (1e3 * float(x) for x in np.diff(times))
    return Stages(host_to_device=there_ms, compute=compute, device_to_host=back)


def _bound(session: onnxruntime.InferenceSession, images: onnxruntime.OrtValue, memory: str) -> Any:
    binding = session.io_binding()
    binding.bind_ortvalue_input("image", images)
    binding.bind_output("logits", memory)
    return binding


def _providers(name: ProviderName, artifact: Artifact | None) -> Sequence[str | tuple[str, dict[str, str]]]:
    """What a session is given: the provider asked for, and those that take what it has no kernel for."""
    cpu = "CPUExecutionProvider"
    # Its default is to round float32 to tf32.
    cuda = ("CUDAExecutionProvider", {"use_tf32": "0"})
    tensorrt = ("TensorrtExecutionProvider", _tensorrt_options(artifact.precision if artifact else "fp32"))
    return {"cpu": [cpu], "cuda": [cuda, cpu], "tensorrt": [tensorrt, cuda, cpu]}[name]


def _tensorrt_options(precision: Precision) -> dict[str, str]:
    """It computes in float32 whatever it is not allowed to round, and builds an engine at each start."""
    rounding = {f"trt_{precision}_enable": "1"} if precision in ("fp16", "bf16", "int8") else {}
    directory = str(cache_directory() / "onnxruntime")
    return {**rounding, "trt_engine_cache_enable": "1", "trt_engine_cache_path": directory}


def check_available(provider: str) -> None:
    """Raise RuntimeUnavailableError where this onnxruntime was built without a provider of that name."""
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise RuntimeUnavailableError(
            f"onnxruntime has no {provider} here; it has {', '.join(available)}",
            hint="pip install 'lct-deploy[gpu]' in an environment without the package onnxruntime",
        )


def _check_chosen(provider: str, chosen: Sequence[str]) -> None:
    """Raise RuntimeUnavailableError where onnxruntime has gone on without the provider asked for.

    That is what it does where the provider's libraries or the driver cannot be loaded.
    """
    if provider not in chosen:
        raise RuntimeUnavailableError(
            f"onnxruntime cannot start its {provider}, and would run on {', '.join(chosen)} instead",
            hint="its message above says what it misses: a library, which pip install 'lct-deploy[gpu]' "
            "brings, or the NVIDIA driver (nvidia-smi)",
        )


def _precision(session: onnxruntime.InferenceSession) -> Precision:
    """What the exporter wrote into the graph; fp32 where it says nothing."""
    metadata = session.get_modelmeta().custom_metadata_map
    return cast("Precision", metadata.get(PRECISION_KEY, "fp32"))


def _spec(session: onnxruntime.InferenceSession) -> RuntimeSpec:
    _, height, width, _ = session.get_inputs()[0].shape
    return RuntimeSpec(
        runtime="onnxruntime",
        precision=_precision(session),
        height=height,
        width=width,
        num_classes=session.get_outputs()[0].shape[1],
        device=session.get_providers()[0],
        versions={"onnxruntime": onnxruntime.__version__},
    )
