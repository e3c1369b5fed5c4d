"""What a user may say of an export; None leaves it to the checkpoint or the default."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from exporters.quantization.histogram import DEFAULT_METHOD, Method
from exporters.quantization.images import MIN_IMAGES
from lct_deploy.checkpoint import LoadOptions
from lct_deploy.manifest import Precision
from lct_deploy.preprocessing import Interpolation, Rgb

Target = Literal["portable", "onnxruntime", "tensorrt", "openvino"]


class CalibrationOptions(BaseModel):
    """How the ranges of an eight-bit graph are measured; `images` None takes the default number."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str | None = None
    images: int | None = Field(default=None, ge=MIN_IMAGES)
    method: Method = DEFAULT_METHOD


class ExportOptions(BaseModel):
    """Options of `lct-deploy export`; sizes in pixels, mean and std for pixels in [0, 1]."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    load: LoadOptions = LoadOptions()
    image_size: int | None = Field(default=None, ge=1, le=4096)
    resize: int | None = Field(default=None, ge=1, le=8192)
    crop: int | None = Field(default=None, ge=1, le=4096)
    interpolation: Interpolation | None = None
    mean: Rgb | None = None
    std: Rgb | None = None
    labels: Path | None = None
    images: Path | None = None
    opset: int | None = None
    precision: Precision = "fp32"
    target: Target | None = None
    calibration: CalibrationOptions = CalibrationOptions()
    name: str | None = None
    version: str = "1"
    gates: bool = False
    allow_unfused: bool = False
    overwrite: bool = False
