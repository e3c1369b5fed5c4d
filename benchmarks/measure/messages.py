"""What a measuring process and its worker say to each other, a line of JSON each."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from lct_deploy.manifest import Precision
from lct_deploy.runtime.base import ProviderName, Stages


class Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Kind = Literal[
    "bundle",
    "torch eager",
    "torch compile",
    "onnxruntime",
    "onnxruntime openvino",
    "openvino",
    "openvino nncf",
    "known time",
]


class Subject(Message):
    """What to measure: a bundle on a runtime; or something else that should answer as the bundle does."""

    kind: Kind = "bundle"
    bundle: Path = Field(description="has the golden inputs, and PyTorch's answers to them")
    graph: Path | None = Field(default=None, description="what others run: an .onnx file or a checkpoint")
    calibration: Path | None = Field(
        default=None, description="images that others quantise the graph with, by a tool of their own"
    )
    runtime: str = Field(default="onnxruntime", description="of a bundle")
    precision: Precision | None = Field(default=None, description="None: the bundle's own")
    provider: ProviderName = "cpu"
    threads: int = Field(ge=1, description="of one inference on the CPU")
    cores: tuple[int, ...] = Field(default=(), description="to run on; () leaves it to the system")
    known_ms: float = Field(default=0.0, ge=0, description="that an inference of 'known time' takes")
    python: Path | None = Field(default=None, description="of another environment")
    project: Path | None = Field(default=None, description="whose code runs it; None: this one's")


class Opened(Message):
    """A subject that is ready, and how far its answers to the golden inputs are from PyTorch's."""

    arch: str
    runtime: str
    precision: str
    compiled_batches: tuple[int, ...]
    device: str
    pixels: int | None = Field(default=None, description="of a side of its input")
    golden_error: float = Field(description="max |Δlogit|")
    golden_top1: float = Field(description="share of the inputs whose best class is PyTorch's")
    preprocess_ms: float = Field(description="of one photograph of 500x375 pixels, median")


class Failed(Message):
    """Why there is no measurement; a row says it in its place."""

    error: str
    hint: str | None = None


class Turn(Message):
    """Infer `batch` images again and again, in `concurrency` threads, for so long."""

    batch: int = Field(ge=1)
    concurrency: int = Field(default=1, ge=1)
    seconds: float = Field(ge=0)


class Taken(Message):
    """What a turn gave: what each inference took, and the whole; peak memory of the process so far."""

    milliseconds: tuple[float, ...]
    seconds: float
    rss_mib: float
    gpu_mib: float | None = Field(default=None, description="of the GPU's memory; None without one")
    stages: Stages | None = Field(default=None, description="of the batch; None where nothing tells them")
