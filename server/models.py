"""The models being served, by name and version: loaded, replaced and unloaded while requests run."""

import asyncio
import logging
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Self

from lct_deploy.errors import LctDeployError
from server.observability.metrics import Metrics
from server.problems import Problem
from server.served import ServedModel
from server.settings import ServerSettings
from server.sources import Source, chosen, scan, version_key

State = Literal["READY", "UNAVAILABLE", "LOADING", "UNLOADING"]
logger = logging.getLogger("lct_deploy.server")


class UnknownModelError(Problem):
    """No model of this name or version is served."""

    def __init__(self, detail: str) -> None:
        super().__init__(404, detail)


@dataclass(frozen=True, kw_only=True)
class IndexEntry:
    """A model that is served or could be."""

    name: str
    version: str
    state: State
    reason: str = ""


class ModelRegistry:
    """Looking up never waits; loading and unloading take turns.

    A new version is looked up from the moment it is ready, the old one answers what it has accepted;
    one that fails its checks leaves the old one serving.
    """

    def __init__(self, settings: ServerSettings, metrics: Metrics, models: Sequence[ServedModel]) -> None:
        self._settings, self._metrics = settings, metrics
        self._models: dict[str, dict[str, ServedModel]] = {}
        for model in models:
            self._models.setdefault(model.name, {})[model.version] = model
        self._changing: dict[tuple[str, str], IndexEntry] = {}
        self._failed: dict[tuple[str, str], str] = {}
        self._turn = asyncio.Lock()
        self._draining: set[asyncio.Task[None]] = set()

    @classmethod
    def open(cls, settings: ServerSettings, metrics: Metrics) -> Self:
        """Every bundle of `settings`, or none. Raises what `scan` and `ServedModel.wait_ready` raise."""
        sources, broken = scan(settings.bundles)
        for bad in broken:
            logger.warning("not served: %s", bad.reason)
        names = dict.fromkeys(source.name for source in sources)
        wanted = [source for name in names for source in chosen(sources, name)]
        return cls(settings, metrics, _launch(wanted, settings, metrics))

    @property
    def models(self) -> list[ServedModel]:
        """All that are served, by name, then by version."""
        return [
            versions[version]
            for _, versions in sorted(self._models.items())
            for version in sorted(versions, key=version_key)
        ]

    @property
    def ready(self) -> bool:
        """Whether there is a model, and every one has an engine that has run a real inference."""
        models = self.models
        return bool(models) and all(model.ready for model in models)

    def start(self) -> None:
        """Take requests; from the event loop that will answer them."""
        for model in self.models:
            model.start()
            logger.info("serving %s", model.describe())

    @contextmanager
    def lease(self, name: str | None, version: str | None = None) -> Generator[ServedModel]:
        """The model that `find` finds, which stays there for as long as the request needs it."""
        model = self.find(name, version)
        with model.lease():
            yield model

    def find(self, name: str | None, version: str | None = None) -> ServedModel:
        """The model called `name`, or the only one where that is None; its latest version by default.

        Raises UnknownModelError for what is not served, a Problem of 400 where a name is needed.
        """
        if name is None:
            if len(self._models) > 1:
                known = ", ".join(sorted(self._models))
                raise Problem(400, f"several models are served; choose one with ?model=: {known}")
            name = next(iter(self._models), "")
        versions = self._models.get(name)
        if not versions:
            known = ", ".join(sorted(self._models)) or "none"
            raise UnknownModelError(f"no model {name!r} is served here; there is {known}")
        if version is None:
            return versions[max(versions, key=version_key)]
        if version not in versions:
            known = ", ".join(sorted(versions, key=version_key))
            raise UnknownModelError(f"no version {version!r} of {name} is served here; there is {known}")
        return versions[version]

    async def index(self) -> list[IndexEntry]:
        """What is served, and what its directories hold besides."""
        sources, broken = await asyncio.to_thread(scan, self._settings.bundles)
        entries = {
            (s.name, s.version): IndexEntry(
                name=s.name,
                version=s.version,
                state="UNAVAILABLE",
                reason=self._failed.get((s.name, s.version), "not loaded"),
            )
            for s in sources
        }
        for bad in broken:
            reason = "its manifest cannot be read"
            entries[bad.name, ""] = IndexEntry(name=bad.name, version="", state="UNAVAILABLE", reason=reason)
        for model in self.models:
            state = "READY" if model.ready else "UNAVAILABLE"
            reason = "" if model.ready else "its engine is being restarted"
            entries[model.name, model.version] = IndexEntry(
                name=model.name, version=model.version, state=state, reason=reason
            )
        return [entry for _, entry in sorted({**entries, **self._changing}.items())]

    async def load(self, name: str) -> None:
        """Load the bundles of this name as they are now, and serve them in place of those served so far.

        Raises UnknownModelError where no bundle has that name, a Problem of 400 where one fails its checks:
        then nothing changes.
        """
        async with self._turn:
            sources = chosen((await asyncio.to_thread(scan, self._settings.bundles))[0], name)
            if not sources:
                raise UnknownModelError(f"no bundle of a model {name!r} is among those configured")
            models = await self._open(sources)
            old = self._models.get(name, {})
            for model in models:
                model.start()
                logger.info("serving %s", model.describe())
            self._models[name] = {model.version: model for model in models}
        self._retire(old.values())

    async def unload(self, name: str) -> None:
        """Serve the model no longer; returns once what it had accepted is answered."""
        async with self._turn:
            old = self._models.pop(name, None)
        if old is None:
            raise UnknownModelError(f"no model {name!r} is served here")
        for model in old.values():
            key = (model.name, model.version)
            self._changing[key] = IndexEntry(name=key[0], version=key[1], state="UNLOADING")
        try:
            await asyncio.gather(*(model.close() for model in old.values()))
        finally:
            for model in old.values():
                self._changing.pop((model.name, model.version), None)
                self._forget(model)
        logger.info("unloaded %s", name)

    async def reload_all(self) -> None:
        """Load every model again whose bundle is there; one that fails is logged and stays as it was."""
        sources, _ = await asyncio.to_thread(scan, self._settings.bundles)
        for name in dict.fromkeys(source.name for source in sources):
            try:
                await self.load(name)
            except Problem as problem:
                logger.error("%s was not loaded again: %s", name, problem.detail)

    async def close(self, seconds: float) -> None:
        """Answer what has been accepted, for at most `seconds`, then end the engines."""
        async with self._turn:
            models, self._models = self.models, {}
        await asyncio.gather(*(model.close(seconds) for model in models), *self._draining)

    def abandon(self) -> None:
        """End the engines of a registry that was never started."""
        for model in self.models:
            model.abandon()

    async def _open(self, sources: Sequence[Source]) -> list[ServedModel]:
        keys = [(source.name, source.version) for source in sources]
        for name, version in keys:
            self._changing[name, version] = IndexEntry(name=name, version=version, state="LOADING")
            self._failed.pop((name, version), None)
        try:
            return await asyncio.to_thread(_launch, sources, self._settings, self._metrics)
        except LctDeployError as error:
            logger.error("%s was not loaded: %s", sources[0].name, error)
            self._metrics.load_failures.labels(sources[0].name).inc()
            self._failed |= dict.fromkeys(keys, "it failed its checks")
            raise Problem(
                400, f"{sources[0].name} failed its checks and was not loaded; the server's log says why"
            ) from error
        finally:
            for key in keys:
                del self._changing[key]

    def _retire(self, models: Iterable[ServedModel]) -> None:
        for model in models:
            task = asyncio.get_running_loop().create_task(self._close(model))
            self._draining.add(task)
            task.add_done_callback(self._draining.discard)

    async def _close(self, model: ServedModel) -> None:
        await model.close()
        self._forget(model)

    def _forget(self, model: ServedModel) -> None:
        """Take away a model's metrics, unless another of its name and version counts in the same."""
        if model.version not in self._models.get(model.name, {}):
            self._metrics.forget(model.series)


def _launch(sources: Sequence[Source], settings: ServerSettings, metrics: Metrics) -> list[ServedModel]:
    """Ready models of all `sources`, whose engines start side by side; or none."""
    models: list[ServedModel] = []
    try:
        for source in sources:
            models.append(ServedModel.launch(source.path, settings, metrics))  # noqa: PERF401 - ended below
        for model in models:
            model.wait_ready()
    except BaseException:
        for model in models:
            model.abandon()
        raise
    return models
