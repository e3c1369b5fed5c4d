"""What a measuring process and its worker say to each other, a line of JSON each."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from lct_deploy.manifest import Precision
from lct_deploy.runtime.base import ProviderName


class Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Subject(Message):
    """What to measure: a bundle on a runtime."""

    bundle: Path
    runtime: str
    precision: Precision | None = Field(default=None, description="None: the bundle's own")
    provider: ProviderName = "cpu"
    threads: int = Field(ge=1, description="of one inference on the CPU")
    cores: tuple[int, ...] = Field(default=(), description="to run on; () leaves it to the system")


class Opened(Message):
    """A subject that has answered the bundle's golden inputs as PyTorch did."""

    arch: str
    runtime: str
    precision: Precision
    compiled_batches: tuple[int, ...]
    device: str
    golden_error: float = Field(description="max |Δlogit| on the golden inputs")
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
