"""Settings of the server: from arguments, then from environment variables `LCT_…`, then defaults."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from lct_deploy.manifest import Precision
from lct_deploy.runtime.base import ProviderName, available_cores


class ServerSettings(BaseSettings):
    """Everything that `lct-deploy serve` can be told."""

    model_config = SettingsConfigDict(env_prefix="LCT_", frozen=True, extra="forbid")

    bundles: tuple[Path, ...] = Field(min_length=1)
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535, description="0 takes a free one")
    runtime: str = "onnxruntime"
    precision: Precision | None = Field(default=None, description="None: what each bundle was exported for")
    provider: ProviderName = Field(default="cpu", description="onnxruntime's")
    streams: int = Field(default=2, ge=1, le=64, description="TensorRT: inferences that run side by side")
    cuda_graphs: bool = Field(default=True, description="TensorRT: launch an inference's kernels at once")
    intra_op_threads: int = Field(default_factory=available_cores, ge=1)
    decode_threads: int = Field(default_factory=available_cores, ge=1)
    max_images: int = Field(default=64, ge=1, description="images in one request")
    shutdown_seconds: int = Field(default=30, ge=0, description="time for requests in flight to finish")
    log_level: str = Field(default="info", pattern="^(critical|error|warning|info|debug)$")
