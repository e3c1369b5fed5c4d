"""What an engine is told when it starts, and what it says of itself once it is ready."""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from lct_deploy.errors import UsageError
from lct_deploy.manifest import Precision
from lct_deploy.runtime.base import RuntimeOptions, RuntimeSpec
from server.engine.defaults import Sharing
from server.observability.logs import LogFormat


class EngineConfig(BaseModel):
    """One bundle, the runtime that runs it, and how its requests are batched."""

    model_config = ConfigDict(frozen=True)

    bundle: Path
    runtime: str
    precision: Precision | None
    options: RuntimeOptions
    threads: int | None = Field(default=None, ge=1, description="None: what pays for the network")
    instances: int | None = Field(default=None, ge=1, description="None: what pays for the network")
    max_batch: int | None = Field(default=None, ge=1, description="None: what pays for the network")
    max_delay: float = Field(ge=0, description="seconds that a batch waits to be filled")
    log_level: str = "info"
    log_format: LogFormat = "text"


class EngineInfo(BaseModel):
    """A ready engine: it has answered the bundle's golden inputs correctly."""

    model_config = ConfigDict(frozen=True)

    manifest_sha256: str
    spec: RuntimeSpec
    sharing: Sharing
    max_batch: int


class BatchSizes(BaseModel):
    """The batches that an engine runs: any up to the largest, or some only."""

    model_config = ConfigDict(frozen=True)

    largest: int = Field(ge=1)
    only: tuple[int, ...] = ()  # ascending, the first is 1

    @classmethod
    def of(cls, spec: RuntimeSpec, max_batch: int | None, *, usual: int) -> Self:
        """Where some batches run on graphs of their own, only those: any other would run slower.

        A runtime that fills batches up itself, and one that has a single graph, take any size; such a graph
        by default up to the `usual` one. Raises UsageError for more than the runtime that fills batches up
        takes.
        """
        compiled = spec.compiled_batches
        most = max(compiled, default=usual)
        largest = max_batch or most
        if spec.pads and largest > most:
            raise UsageError(
                f"--max-batch {largest}: the {spec.runtime} engine takes at most {most} images at once",
                hint=f"--max-batch {most}, or lct-deploy compile BUNDLE --runtime {spec.runtime} "
                f"--precision {spec.precision} --batch 1:{most}:{largest}",
            )
        if spec.pads or not compiled:
            return cls(largest=largest)
        only = tuple(sorted({1, *(size for size in compiled if size <= largest)}))
        return cls(largest=only[-1], only=only)

    def fit(self, rows: int) -> int:
        """The largest batch that `rows` fill."""
        if not self.only:
            return min(rows, self.largest)
        return max(size for size in self.only if size <= rows)
