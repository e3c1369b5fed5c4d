"""Which models are served: loaded, replaced and unloaded while requests run."""

import asyncio
import logging
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from lct_deploy.errors import LctDeployError
from server.models import UnknownModelError
from server.observability.metrics import Metrics
from server.offers import Attendant
from server.problems import Problem
from server.settings import ServerSettings
from server.sources import Source, chosen, scan, version_key
from server.upkeep import KeptEngine

State = Literal["READY", "UNAVAILABLE", "LOADING", "UNLOADING"]
logger = logging.getLogger("lct_deploy.server")


@dataclass(frozen=True, kw_only=True)
class IndexEntry:
    """A model that is served or could be."""

    name: str
    version: str
    state: State
    reason: str = ""


class Repository(Protocol):
    """Gives models to whoever answers requests, and changes them when it is asked to."""

    async def start(self, attendant: Attendant) -> None:
        """All models that are served are with `attendant` on return."""
        ...

    async def index(self) -> list[IndexEntry]:
        """What is served, and what its directories hold besides."""
        ...

    async def load(self, name: str) -> None:
        """Load the bundles of this name as they are now, and serve them in place of those served so far.

        Raises a Problem: 404 where no bundle has that name, 400 where one fails its checks; then nothing
        changes.
        """
        ...

    async def unload(self, name: str) -> None:
        """Serve the model no longer; returns once what it had accepted is answered.

        Raises a Problem of 404 for what is not served.
        """
        ...

    async def close(self, seconds: float) -> None:
        """Answer what has been accepted, for at most `seconds`, then let go of all models."""
        ...


class OwnedRepository:
    """The repository in the process that owns the engines. Loading and unloading take turns.

    A version that fails its checks leaves the old one serving.
    """

    def __init__(self, settings: ServerSettings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._engines: dict[str, dict[str, KeptEngine]] = {}
        self._retired: set[KeptEngine] = set()  # those that only finish what they have accepted
        self._attendants: list[Attendant] = []
        self._changing: dict[tuple[str, str], IndexEntry] = {}
        self._failed: dict[tuple[str, str], str] = {}
        self._turn = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()

    def launch(self) -> None:
        """Make every bundle of the settings ready, or none; needs no event loop.

        Raises what `scan` and `KeptEngine.wait_ready` raise.
        """
        sources, broken = scan(self._settings.bundles)
        for bad in broken:
            logger.warning("not served: %s", bad.reason)
        names = dict.fromkeys(source.name for source in sources)
        wanted = [source for name in names for source in chosen(sources, name)]
        for engine in _launch(wanted, self._settings):
            self._engines.setdefault(engine.name, {})[engine.version] = engine

    @property
    def engines(self) -> list[KeptEngine]:
        """Of all models that are served, by name, then by version."""
        return [
            versions[version]
            for _, versions in sorted(self._engines.items())
            for version in sorted(versions, key=version_key)
        ]

    async def start(self, attendant: Attendant) -> None:
        self.watch()
        await self.join(attendant)

    def watch(self) -> None:
        """Keep the engines running; from the event loop that all else will be called from."""
        for engine in self.engines:
            self._start(engine)

    def join(self, attendant: Attendant) -> Awaitable[None]:
        """From now on `attendant` is given every model that is served."""
        self._attendants.append(attendant)
        return attendant.serve([engine.offer(attendant) for engine in self.engines])

    def leave(self, attendant: Attendant) -> None:
        """`attendant` has gone."""
        self._attendants.remove(attendant)
        for engine in (*self.engines, *self._retired):
            engine.leave(attendant)

    async def index(self) -> list[IndexEntry]:
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
        for engine in self.engines:
            state = "READY" if engine.ready else "UNAVAILABLE"
            reason = "" if engine.ready else "its engine is being restarted"
            entries[engine.name, engine.version] = IndexEntry(
                name=engine.name, version=engine.version, state=state, reason=reason
            )
        return [entry for _, entry in sorted({**entries, **self._changing}.items())]

    async def load(self, name: str) -> None:
        async with self._turn:
            sources = chosen((await asyncio.to_thread(scan, self._settings.bundles))[0], name)
            if not sources:
                raise UnknownModelError(f"no bundle of a model {name!r} is among those configured")
            engines = await self._open(sources)
            old = self._engines.get(name, {})
            self._engines[name] = {engine.version: engine for engine in engines}
            for engine in engines:
                self._start(engine)
            self._retired.update(old.values())
            await self._offer(engines)
            self._retire_later(old.values())

    async def unload(self, name: str) -> None:
        async with self._turn:
            old = self._engines.pop(name, None)
        if old is None:
            raise UnknownModelError(f"no model {name!r} is served here")
        for engine in old.values():
            key = (engine.name, engine.version)
            self._changing[key] = IndexEntry(name=key[0], version=key[1], state="UNLOADING")
        try:
            await self._retire(old.values())
        finally:
            for engine in old.values():
                self._changing.pop((engine.name, engine.version), None)
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
        async with self._turn:
            engines, self._engines = self.engines, {}
        await asyncio.gather(self._retire(engines, seconds), *self._retiring)

    def _start(self, engine: KeptEngine) -> None:
        engine.start(self._metrics)
        logger.info("serving %s", engine.describe())

    async def _offer(self, engines: Sequence[KeptEngine]) -> None:
        told = [attendant.serve([e.offer(attendant) for e in engines]) for attendant in self._attendants]
        await asyncio.gather(*told)

    async def _open(self, sources: Sequence[Source]) -> list[KeptEngine]:
        keys = [(source.name, source.version) for source in sources]
        for name, version in keys:
            self._changing[name, version] = IndexEntry(name=name, version=version, state="LOADING")
            self._failed.pop((name, version), None)
        try:
            return await asyncio.to_thread(_launch, sources, self._settings)
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

    def _retire_later(self, engines: Iterable[KeptEngine]) -> None:
        task = asyncio.get_running_loop().create_task(self._retire(engines))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _retire(self, engines: Iterable[KeptEngine], seconds: float | None = None) -> None:
        """End engines once they have answered what was accepted, or `seconds` are over."""
        engines = list(engines)
        self._retired.update(engines)
        numbers = [engine.number for engine in engines]
        await asyncio.gather(*(attendant.withdraw(numbers, seconds) for attendant in self._attendants))
        await asyncio.gather(*(engine.stop() for engine in engines))
        self._retired.difference_update(engines)


def _launch(sources: Sequence[Source], settings: ServerSettings) -> list[KeptEngine]:
    """Ready engines of all `sources`, which start side by side; or none."""
    engines: list[KeptEngine] = []
    try:
        for source in sources:
            engines.append(KeptEngine.launch(source.path, settings))  # noqa: PERF401 - ended below
        for engine in engines:
            engine.wait_ready()
    except BaseException:
        for engine in engines:
            engine.abandon()
        raise
    return engines
