"""What a user may say of a backbone's export; None leaves it to the checkpoint or the default."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from lct_deploy.architecture import FeatureName
from lct_deploy.checkpoint import LoadOptions
from lct_deploy.preprocessing import Rgb

DEFAULT_SHORT_SIDE = 128


class BackboneOptions(BaseModel):
    """Options of `lct-deploy export --features`; `resize` is the short side of parity's images, in pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    load: LoadOptions = LoadOptions()
    features: tuple[FeatureName, ...] = Field(min_length=1)
    resize: int = Field(default=DEFAULT_SHORT_SIDE, ge=32, le=4096)
    mean: Rgb | None = None
    std: Rgb | None = None
    images: Path | None = None
    opset: int | None = None
    name: str | None = None
    version: str = "1"
    allow_unfused: bool = False
    overwrite: bool = False
