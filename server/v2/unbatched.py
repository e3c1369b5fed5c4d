"""The models of `ModelRegistry` as the protocol takes them: no queue, one version of each."""

import asyncio
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lct_deploy.errors import LctDeployError
from lct_deploy.manifest import Manifest
from lct_deploy.runtime import RuntimeOptions
from lct_deploy.runtime.base import RuntimeSpec
from lct_deploy.runtime.submit import Inference
from server.models import ModelRegistry, ServedModel
from server.problems import Problem
from server.settings import ServerSettings


@dataclass(kw_only=True)
class Duration:
    """How often something took time, and how many nanoseconds in all."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.ns += round(seconds * 1e9)


@dataclass(kw_only=True)
class BatchStatistics:
    """Executions of one batch size."""

    batch_size: int
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)


@dataclass(kw_only=True)
class Statistics:
    """Totals of a model: each request is a batch of its own."""

    last_inference: int = 0
    inference_count: int = 0
    execution_count: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    batches: list[BatchStatistics] = field(default_factory=list)

    def record(self, rows: int, queue: float, compute: float) -> None:
        self.last_inference = round(time.time() * 1000)
        self.inference_count += rows
        self.execution_count += 1
        self.success.add(queue + compute)
        self.queue.add(queue)
        self.compute_infer.add(compute)
        sizes = {batch.batch_size: batch for batch in self.batches}
        if rows not in sizes:
            sizes[rows] = BatchStatistics(batch_size=rows)
            self.batches.append(sizes[rows])
        sizes[rows].compute_infer.add(compute)


class UnbatchedModel:
    """A served model; requests run one after the other."""

    def __init__(self, served: ServedModel, spec: RuntimeSpec) -> None:
        self.served, self.spec = served, spec
        self.max_batch = 1
        self.ready = True
        self._statistics = Statistics()
        self._held = 0

    @property
    def name(self) -> str:
        return self.served.name

    @property
    def version(self) -> str:
        return self.manifest.version

    @property
    def manifest(self) -> Manifest:
        return self.served.manifest

    @contextmanager
    def reserve(self, count: int) -> Generator["UnbatchedModel"]:
        self._held += 1
        try:
            yield self
        finally:
            self._held -= 1

    async def retire(self) -> None:
        """Close it once what it has accepted is answered."""
        while self._held:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(self.served.close)

    async def infer(self, images: Sequence[NDArray[np.uint8]], deadline: float) -> Inference:
        started = time.monotonic()
        try:
            async with asyncio.timeout(deadline - started):
                inference = await self.served.infer(np.stack(images))
        except TimeoutError as error:
            self._statistics.fail.add(time.monotonic() - started)
            raise Problem(504, "the request was not answered before its deadline") from error
        self._statistics.record(len(images), inference.queue_seconds, inference.compute_seconds)
        return inference

    async def statistics(self) -> Statistics:
        return self._statistics


@dataclass(frozen=True, kw_only=True)
class IndexEntry:
    """A model that is served, or could be."""

    name: str
    version: str
    state: str
    reason: str = ""


class UnbatchedModels:
    """The bundles that the server was started with, loaded or not."""

    def __init__(self, registry: ModelRegistry, settings: ServerSettings) -> None:
        self._settings = settings
        served = [registry.get(name) for name in registry.names]
        self._known = {model.name: model for model in served if model is not None}
        self._loaded = {name: UnbatchedModel(model, model.spec) for name, model in self._known.items()}
        self._reopened: dict[str, UnbatchedModel] = {}

    @property
    def models(self) -> list[UnbatchedModel]:
        return list(self._loaded.values())

    def find(self, name: str, version: str | None = None) -> UnbatchedModel:
        model = self._loaded.get(name)
        if model is None:
            raise Problem(404, f"no model {name!r} is served here; there is {', '.join(self._loaded)}")
        if version not in (None, model.version):
            raise Problem(404, f"no version {version!r} of {name} is served here; there is {model.version}")
        return model

    async def index(self) -> list[IndexEntry]:
        return [
            IndexEntry(name=name, version=model.manifest.version, state="READY")
            if name in self._loaded
            else IndexEntry(
                name=name, version=model.manifest.version, state="UNAVAILABLE", reason="not loaded"
            )
            for name, model in self._known.items()
        ]

    async def load(self, name: str) -> None:
        if name not in self._known:
            raise Problem(404, f"no bundle of a model {name!r} is among those configured")
        options = RuntimeOptions(threads=self._settings.intra_op_threads, provider=self._settings.provider)
        path = self._known[name].bundle.path
        try:
            served = await asyncio.to_thread(
                ServedModel.open, path, self._settings.runtime, options, self._settings.precision
            )
        except LctDeployError as error:
            raise Problem(400, f"{name} failed its checks and was not loaded") from error
        previous = self._reopened.get(name)
        self._loaded[name] = self._reopened[name] = UnbatchedModel(served, served.spec)
        if previous is not None:
            await previous.retire()

    async def unload(self, name: str) -> None:
        self.find(name)
        del self._loaded[name]

    def close(self) -> None:
        """Close what was loaded again; the registry closes its own."""
        for model in self._reopened.values():
            model.served.close()
