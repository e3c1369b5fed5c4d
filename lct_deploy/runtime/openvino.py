"""OpenVINO: graphs on the CPU in fp32, bf16 and int8, with oneDNN's kernels."""

from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any, Self, cast

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino.frontend import FrontEndManager

from lct_deploy.errors import BundleError, DeviceError, RuntimeUnavailableError
from lct_deploy.manifest import PRECISION_KEY, Artifact, Precision
from lct_deploy.runtime.base import RuntimeOptions, RuntimeSpec, Stages, check_images, milliseconds_of
from lct_deploy.runtime.buckets import BatchRange, bucket_sizes, split

_DEVICE = "CPU"
_PLACES = "Exception from", "Check '", "FrontEnd API failed"  # how lines begin that name them


class OpenVinoRuntime:
    """A graph compiled once for each batch size, at its first use: for any batch it is up to half slower.

    Calls take turns: one already keeps all threads busy.
    """

    def __init__(self, graph: openvino.Model, options: RuntimeOptions, spec: RuntimeSpec) -> None:
        self._graph, self._options, self._spec = graph, options, spec
        self._requests: dict[int, openvino.InferRequest] = {}
        self._turn = Lock()

    @classmethod
    def open(cls, path: Path, options: RuntimeOptions, artifact: Artifact | None = None) -> Self:
        try:
            graph = read_graph(path)
            spec = _spec(graph, options)
        except Exception as error:  # openvino's exceptions share no base class of their own
            raise BundleError(f"{path}: openvino cannot load it: {_reason(error)}") from error
        _check_precision(spec.precision)
        return cls(graph, options, spec)

    @property
    def spec(self) -> RuntimeSpec:
        return self._spec

    def infer(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        check_images(images, self._spec)
        chunks = split(len(images), self._spec.compiled_batches)
        with self._turn:
            parts = [self._run(images[chunk.start : chunk.stop], chunk.bucket) for chunk in chunks]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def profile(self, images: NDArray[np.uint8]) -> Stages:
        return Stages(compute=milliseconds_of(lambda: self.infer(images)))

    def close(self) -> None:
        del self._requests, self._graph

    def _run(self, images: NDArray[np.uint8], bucket: int) -> NDArray[np.float32]:
        """The logits of `images`, filled up to `bucket` with black ones."""
        filled = images
        if len(images) < bucket:
            filled = np.zeros((bucket, *images.shape[1:]), np.uint8)
            filled[: len(images)] = images
        try:
            request = self._requests.get(bucket) or self._prepare(bucket)
            # Read where they lie: they stay there until this call is over.
            return request.infer({0: filled}, share_inputs=True)[0][: len(images)]
        except RuntimeError as error:
            raise DeviceError(f"openvino does not run a batch of {bucket}: {_reason(error)}") from error

    def _prepare(self, bucket: int) -> openvino.InferRequest:
        compiled = compile_graph(self._graph, bucket, threads=self._options.threads)
        self._requests[bucket] = compiled.create_infer_request()
        return self._requests[bucket]


def read_graph(source: Path | BytesIO) -> openvino.Model:
    """An ONNX graph; raises exceptions of openvino's for what is none, or has operators that it lacks.

    By ONNX's own frontend: OpenVINO would try them all, and print what each has against the file.
    """
    frontend = FrontEndManager().load_by_framework("onnx")
    return frontend.convert(frontend.load(source if isinstance(source, BytesIO) else str(source)))


def compile_graph(graph: openvino.Model, batch: int, *, threads: int) -> openvino.CompiledModel:
    """`graph` for `batch` images on this machine, every tensor in the type that the graph gives it."""
    fixed = graph.clone()
    shape = fixed.input("image").partial_shape
    shape[0] = batch
    fixed.reshape(shape)
    return openvino.Core().compile_model(fixed, _DEVICE, settings(threads))


def settings(threads: int) -> dict[str, Any]:
    """What a graph is compiled with: for one call at a time, on so many `threads`."""
    return {
        # The least that float32 may become. Where the processor has bf16, that is the default.
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        # Graphs side by side, as a server's instances are, would be pinned to the same cores.
        "ENABLE_CPU_PINNING": False,
    }


def capabilities() -> list[str]:
    """The types that OpenVINO computes in on this processor, as FP32, BF16, INT8."""
    return cast("list[str]", openvino.Core().get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES"))


def _check_precision(precision: Precision) -> None:
    """Raise RuntimeUnavailableError for bf16 on a processor without: OpenVINO would compute in float32."""
    if precision == "bf16" and "BF16" not in capabilities():
        raise RuntimeUnavailableError(
            "this processor has no bf16 (AVX512_BF16 or AMX), openvino would compute in float32",
            hint="--precision fp32 or int8, of a bundle that was exported for that",
        )


def _spec(graph: openvino.Model, options: RuntimeOptions) -> RuntimeSpec:
    _, height, width, _ = graph.input("image").partial_shape
    largest = options.max_batch
    return RuntimeSpec(
        runtime="openvino",
        precision=_precision(graph),
        height=height.get_length(),
        width=width.get_length(),
        num_classes=graph.output("logits").partial_shape[1].get_length(),
        device=f"{_DEVICE}: {openvino.Core().get_property(_DEVICE, 'FULL_DEVICE_NAME')}",
        versions={"openvino": openvino.__version__.split("-")[0]},
        compiled_batches=bucket_sizes([BatchRange(min=1, opt=largest, max=largest)]),
        pads=True,
    )


def _precision(graph: openvino.Model) -> Precision:
    """What the exporter wrote into the graph; fp32 where it says nothing."""
    key = ["framework", PRECISION_KEY]
    return cast("Precision", graph.get_rt_info(key).astype(str)) if graph.has_rt_info(key) else "fp32"


def _reason(error: Exception) -> str:
    """What OpenVINO says in one line: its summary where it has one, less the places in its source."""
    said = str(error).rpartition("Summary:")[2]
    lines = [line.strip(" -") for line in said.splitlines()]
    return "; ".join(line for line in lines if line and not line.startswith(_PLACES))
