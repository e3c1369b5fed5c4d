"""The models that requests find here, by name and version."""

import asyncio
import socket
from collections.abc import Sequence

from server.observability.metrics import Metrics
from server.offers import Offer
from server.problems import Problem
from server.served import ServedModel
from server.settings import ServerSettings
from server.sources import version_key


class UnknownModelError(Problem):
    """No model of this name or version is served."""

    def __init__(self, detail: str) -> None:
        super().__init__(404, detail)


class Models:
    """An `Attendant`: which models there are is up to whoever owns the engines. Looking up never waits.

    A new version is looked up from the moment it is there, the old one answers what it has accepted.
    """

    def __init__(self, settings: ServerSettings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._models: dict[str, dict[str, ServedModel]] = {}  # of each name the latest version last
        self._by_engine: dict[int, ServedModel] = {}  # those too that only finish what they have accepted

    @property
    def models(self) -> list[ServedModel]:
        """All that are served, by name, then by version."""
        return [model for _, versions in sorted(self._models.items()) for model in versions.values()]

    @property
    def ready(self) -> bool:
        """Whether there is a model, and every one has an engine that has run a real inference."""
        models = self.models
        return bool(models) and all(model.ready for model in models)

    def find(self, name: str | None, version: str | None = None) -> ServedModel:
        """The model called `name`, or the only one where that is None; its latest version by default.

        Whoever needs it for longer than this moment leases it: `with models.find(name) as model`.

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
            return next(reversed(versions.values()))
        if version not in versions:
            known = ", ".join(versions)
            raise UnknownModelError(f"no version {version!r} of {name} is served here; there is {known}")
        return versions[version]

    async def serve(self, offers: Sequence[Offer]) -> None:
        served: dict[str, dict[str, ServedModel]] = {}
        for offer in offers:
            model = ServedModel(offer, self._settings, self._metrics)
            self._by_engine[offer.engine] = model
            served.setdefault(model.name, {})[model.version] = model
        self._models |= {name: _by_version(versions) for name, versions in served.items()}

    def connect(self, engine: int, link: socket.socket) -> None:
        if engine in self._by_engine:
            self._by_engine[engine].connect(link)
        else:  # withdrawn, which its owner does not know yet
            link.close()

    def suspend(self, engine: int, seconds: float) -> None:
        if engine in self._by_engine:
            self._by_engine[engine].suspend(seconds)

    async def withdraw(self, engines: Sequence[int], seconds: float | None) -> None:
        models = [self._by_engine[engine] for engine in engines if engine in self._by_engine]
        for model in models:
            self._remove(model)
        await asyncio.gather(*(model.close(seconds) for model in models))
        for model in models:
            self._by_engine.pop(model.engine, None)
            self._forget(model)

    def _remove(self, model: ServedModel) -> None:
        """Let no request find it; another of its name and version may have taken its place."""
        versions = self._models.get(model.name, {})
        if versions.get(model.version) is model:
            del versions[model.version]
        if not versions:
            self._models.pop(model.name, None)

    def _forget(self, model: ServedModel) -> None:
        """Take away a model's metrics, unless another of its name and version counts in the same."""
        if model.version not in self._models.get(model.name, {}):
            self._metrics.forget(model.series)


def _by_version(models: dict[str, ServedModel]) -> dict[str, ServedModel]:
    return dict(sorted(models.items(), key=lambda model: version_key(model[0])))
