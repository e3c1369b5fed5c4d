"""Settings of the server: from arguments, then from environment variables `LCT_…`, then defaults."""

from pathlib import Path

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from lct_deploy.cores import available_cores
from lct_deploy.manifest import Precision
from lct_deploy.runtime.base import ProviderName
from server.observability.logs import LogFormat


class ServerSettings(BaseSettings):
    """Everything that `lct-deploy serve` can be told."""

    model_config = SettingsConfigDict(env_prefix="LCT_", frozen=True, extra="forbid")

    bundles: tuple[Path, ...] = Field(min_length=1, description="bundles, or repositories of them")
    host: str = Field(default="127.0.0.1", description="this machine only; 0.0.0.0 for all networks")
    port: int = Field(default=8000, ge=0, le=65535, description="0 takes a free one")
    workers: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="processes that read and decode, in front of the same engines; by default what pays",
    )
    log_level: str = Field(
        default="info",
        pattern="^(critical|error|warning|info|debug)$",
        description="critical, error, warning, info or debug",
    )
    log_format: LogFormat | None = Field(
        default=None, description="json or text; by default text on a terminal, json elsewhere"
    )
    otel: bool = Field(default=False, description="send spans, as OpenTelemetry's own variables say")

    keys_file: Path | None = Field(
        default=None, description="lines of a group (infer, admin, metrics) and a key"
    )
    infer_keys: SecretStr | None = Field(
        default=None, description="separated by commas; without any, open to all"
    )
    admin_keys: SecretStr | None = Field(default=None, description="separated by commas; without any, off")
    metrics_keys: SecretStr | None = Field(
        default=None, description="separated by commas; without any, open to all"
    )
    cors_origins: str = Field(default="", description="of pages that may call this server, with commas")

    runtime: str = Field(default="onnxruntime", description="or openvino, tensorrt, tensorrt-rtx")
    precision: Precision | None = Field(
        default=None, description="by default what each bundle was exported for"
    )
    provider: ProviderName = Field(default="cpu", description="onnxruntime's: cpu, cuda or tensorrt")
    streams: int = Field(default=2, ge=1, le=64, description="TensorRT: inferences that run side by side")
    cuda_graphs: bool = Field(default=True, description="TensorRT: launch an inference's kernels at once")

    instances: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="copies of a model that run side by side; by default what pays for the network",
    )
    intra_op_threads: int | None = Field(
        default=None, ge=1, description="of one inference; by default what pays for the network"
    )
    decode_threads: int = Field(
        default_factory=lambda data: max(1, available_cores() // (2 * (data.get("workers") or 1))),
        ge=1,
        description="of each worker; see server/decoding.py",
    )
    max_batch: int | None = Field(
        default=None, ge=1, le=1024, description="by default what pays for the network"
    )
    max_delay_ms: float = Field(
        default=0,
        ge=0,
        le=10_000,
        description="that a batch waits to be filled; on a CPU at least 10 for images being decoded",
    )

    max_queue: int = Field(default=256, ge=1, le=65536, description="images of a model that may wait")
    max_images: int = Field(default=64, ge=1, description="images in one request")
    max_json_values: int = Field(
        default=1_500_000, ge=1, description="in the JSON of a V2 request; binary tensors have no such limit"
    )
    max_body_bytes: int = Field(default=32 << 20, ge=1, description="of one request")
    max_buffered_bytes: int = Field(default=256 << 20, ge=1, description="of all requests being read")
    body_seconds: float = Field(
        default=30, gt=0, description="for a client to send its headers, and again for its body"
    )
    keep_alive_seconds: int = Field(
        default=75, ge=1, description="that an idle connection is kept: longer than a proxy in front keeps it"
    )
    request_seconds: float = Field(default=30, gt=0, description="for an answer, if the client sets no time")
    hang_seconds: float = Field(default=60, gt=0, description="for one batch; then its engine is restarted")
    drain_seconds: float = Field(default=2, ge=0, description="after SIGTERM: not ready, but still serving")
    shutdown_seconds: int = Field(default=30, ge=0, description="for requests in flight to finish")

    @property
    def processes(self) -> int:
        """That answer requests: the workers, or the one process that does all."""
        return self.workers or 1

    @model_validator(mode="after")
    def _check(self) -> "ServerSettings":
        if self.max_images > self.max_queue:
            raise ValueError(f"max_images {self.max_images} is over max_queue {self.max_queue}")
        return self
