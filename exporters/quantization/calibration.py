"""The range of every tensor that is to be quantised, measured on real images."""

from collections.abc import Iterable, Mapping

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, helper

from exporters.nodes import node_module
from exporters.quantization.histogram import Histogram, Method, Range
from exporters.quantization.placement import placement, stem_input
from lct_deploy.errors import ExportError
from lct_deploy.progress import track

Images = NDArray[np.uint8]


def calibrate(
    model: ModelProto, batches: Iterable[Images], method: Method, *, total: int
) -> dict[str, Range]:
    """Ranges by tensor name over `total` batches (N, H, W, 3), for either target of `quantize`.

    Memory holds the activations of one batch. Raises ExportError for a tensor that is not finite.
    """
    tensors = list(dict.fromkeys(placement(model.graph, "onnxruntime").values()))
    session = _session(model, tensors)
    histograms = {name: Histogram() for name in tensors}
    images = None
    for images in track(batches, "calibrating", total=total):
        for name, values in _activations(session, tensors, images).items():
            _check_finite(name, values, model)
            histograms[name].add(values)
    if images is None:
        raise ExportError("there are no images to calibrate on")
    ranges = {name: _range(histogram, method) for name, histogram in histograms.items()}
    stem = stem_input(model.graph)
    return {**ranges, stem: _input_range(session, stem, images)}


def _session(model: ModelProto, tensors: list[str]) -> onnxruntime.InferenceSession:
    """The fp32 graph with `tensors` for outputs."""
    exposed = ModelProto()
    exposed.CopyFrom(model)
    del exposed.graph.output[:]
    exposed.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in tensors)
    options = onnxruntime.SessionOptions()
    # An arena would keep the largest batch's memory, and every output is copied out anyway.
    options.enable_cpu_mem_arena = False
    return onnxruntime.InferenceSession(
        exposed.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _activations(
    session: onnxruntime.InferenceSession, tensors: list[str], images: Images
) -> Mapping[str, NDArray[np.float32]]:
    outputs = session.run(tensors, {"image": images})
    return dict(zip(tensors, map(np.asarray, outputs), strict=True))


def _range(histogram: Histogram, method: Method) -> Range:
    if method == "min-max":
        return Range(histogram.low, histogram.high)
    return histogram.percentile() if method == "percentile" else histogram.entropy()


def _input_range(session: onnxruntime.InferenceSession, stem: str, images: Images) -> Range:
    """Known exactly, whatever the images were: normalisation is monotonic in each channel."""
    extremes = np.stack([np.full(images.shape[1:], value, np.uint8) for value in (0, 255)])
    values = _activations(session, [stem], extremes)[stem]
    return Range(float(values.min()), float(values.max()))


def _check_finite(name: str, values: NDArray[np.float32], model: ModelProto) -> None:
    if not np.isfinite([values.min(), values.max()]).all():
        module = node_module(next(node for node in model.graph.node if name in node.output))
        raise ExportError(
            f"{module}: activations are NaN or infinite in float32, there is no range to quantise",
            hint="the checkpoint itself overflows: `lct-deploy verify` shows where",
        )
