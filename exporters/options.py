"""What a user may say of an export; None leaves it to the checkpoint or the default."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from exporters.graph import DEFAULT_OPSET
from lct_deploy.checkpoint import LoadOptions
from lct_deploy.preprocessing import Interpolation, Rgb


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
    opset: int = DEFAULT_OPSET
    name: str | None = None
    version: str = "1"
    allow_unfused: bool = False
    overwrite: bool = False
