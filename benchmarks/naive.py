"""What somebody gets who exports and quantises without us, with the defaults of torch and onnxruntime."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto
from onnxruntime.quantization import CalibrationDataReader, quantize_static

from exporters.graph import trace
from exporters.images import parity_images
from lct_deploy.models import ResNet
from lct_deploy.models.classifier import ImageClassifier
from lct_deploy.preprocessing import Preprocessing

CALIBRATION = 16  # images
_OPSET = 20

Images = NDArray[np.uint8]


def naive_graph(network: ResNet, preprocessing: Preprocessing) -> ModelProto:
    """A plain torch.onnx.export."""
    return trace(ImageClassifier(network, preprocessing).eval(), preprocessing.crop, _OPSET)


def quantize_naively(model: ModelProto, preprocessing: Preprocessing, directory: Path) -> ModelProto:
    """What onnxruntime makes of it with its defaults; `directory` is for files on the way."""
    source, target = directory / "float.onnx", directory / "static.onnx"
    onnx.save(model, source)
    quantize_static(str(source), str(target), _Reader(calibration_images(preprocessing)))
    return onnx.load(target)


def calibration_images(preprocessing: Preprocessing) -> Images:
    return parity_images(preprocessing, None, ()).images[:CALIBRATION]


class _Reader(CalibrationDataReader):
    def __init__(self, images: Images) -> None:
        self._images: Iterator[Images] = iter(np.split(images, len(images)))

    def get_next(self) -> dict[str, Images] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        images = next(self._images, None)
        return None if images is None else {"image": images}
