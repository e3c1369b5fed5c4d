"""The ranges and means of an fp32 graph's tensors, measured on real images."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, helper

from exporters.nodes import node_module
from exporters.quantization.extremes import IMAGE_SHARE, Extremes
from exporters.quantization.histogram import Histogram, Method, Range
from exporters.quantization.placement import placement, stem_input
from lct_deploy.errors import ExportError
from lct_deploy.progress import track

Images = NDArray[np.uint8]
Values = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What images have shown of the tensors of an fp32 graph, by name.

    ranges  of those that are to be quantised, for any target of `quantize`
    means   (C,) by channel, of what convolutions and linear layers read
    """

    ranges: Mapping[str, Range]
    means: Mapping[str, NDArray[np.float64]]


def calibrate(model: ModelProto, batches: Iterable[Images], method: Method, *, total: int) -> Calibration:
    """Run `model` on `total` batches (N, H, W, 3).

    Memory holds the activations of one batch. Raises ExportError for a tensor that is not finite.
    """
    collectors = {name: _collector(method) for name in placement(model.graph, "onnxruntime").values()}
    means = {node.input[0]: _Mean() for node in model.graph.node if node.op_type in ("Conv", "Gemm")}
    tensors = list(dict.fromkeys([*collectors, *means]))
    session = _session(model, tensors)
    images = None
    for images in track(batches, "calibrating", total=total):
        for name, values in _activations(session, tensors, images).items():
            _check_finite(name, values, model)
            if name in collectors:
                collectors[name][0](values)
            if name in means:
                means[name].add(values)
    if images is None:
        raise ExportError("there are no images to calibrate on")
    ranges = {name: range_() for name, (_, range_) in collectors.items()}
    stem = stem_input(model.graph)
    return Calibration(
        ranges={**ranges, stem: _input_range(session, stem, images)},
        means={name: mean.by_channel for name, mean in means.items()},
    )


class _Mean:
    """Of all values (N, C, …) of a tensor by channel."""

    def __init__(self) -> None:
        self._sum: NDArray[np.float64] | float = 0.0
        self._count = 0

    def add(self, values: Values) -> None:
        axes = tuple(axis for axis in range(values.ndim) if axis != 1)
        self._sum = self._sum + values.sum(axis=axes, dtype=np.float64)
        self._count += values.size // values.shape[1]

    @property
    def by_channel(self) -> NDArray[np.float64]:
        return np.asarray(self._sum) / self._count


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
) -> Mapping[str, Values]:
    outputs = session.run(tensors, {"image": images})
    return dict(zip(tensors, map(np.asarray, outputs), strict=True))


def _collector(method: Method) -> tuple[Callable[[Values], None], Callable[[], Range]]:
    """What takes the values of one tensor, batch by batch, and what then gives its range."""
    if method in ("min-max", "image-percentile"):
        extremes = Extremes()
        return extremes.add, partial(extremes.within, 1.0 if method == "min-max" else IMAGE_SHARE)
    histogram = Histogram()
    return histogram.add, histogram.percentile if method == "percentile" else histogram.entropy


def _input_range(session: onnxruntime.InferenceSession, stem: str, images: Images) -> Range:
    """Known exactly, whatever the images were: normalisation is monotonic in each channel."""
    extremes = np.stack([np.full(images.shape[1:], value, np.uint8) for value in (0, 255)])
    values = _activations(session, [stem], extremes)[stem]
    return Range(float(values.min()), float(values.max()))


def _check_finite(name: str, values: Values, model: ModelProto) -> None:
    if not np.isfinite([values.min(), values.max()]).all():
        module = node_module(next(node for node in model.graph.node if name in node.output))
        raise ExportError(
            f"{module}: activations are NaN or infinite in float32, there is no range to quantise",
            hint="the checkpoint itself overflows: `lct-deploy verify` shows where",
        )
