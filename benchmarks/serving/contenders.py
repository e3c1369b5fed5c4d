"""Our server and its peers, each ready to be started in one way of using the cores."""

import shlex
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import lct_deploy
from benchmarks.serving.peers.catalogue import Peer
from benchmarks.serving.peers.running import Running, Shape, running_peer
from benchmarks.serving.photos import photos
from benchmarks.serving.requests import raw, target
from benchmarks.serving.servers import Server, ask, lct_deploy_serve
from lct_deploy.bundle import Bundle, open_bundle, write_manifest
from lct_deploy.cores import available_cores

OURS = "lct-deploy"
COMPILED = "lct-deploy compiled"


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A server in one shape; `start` starts it and waits until it answers."""

    name: str
    version: str
    shape: str
    start: Callable[[], AbstractContextManager[Running]]


@contextmanager
def running_ours(
    bundle: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> Generator[Running]:
    """`lct-deploy serve`; raises ServerFailedError where it does not start."""
    with Server(lct_deploy_serve(str(bundle), *arguments), environment=environment) as server:
        where = target(f"{server.url()}/v1/classify", [raw(photo) for photo in photos()])
        seconds = server.wait_until(lambda: ask(where)[0] == 200)
        yield Running(server=server, where=where, start_seconds=seconds)


@contextmanager
def contenders(
    bundle: Bundle, peers: Sequence[Peer], options: Sequence[str] | None
) -> Generator[list[Contender]]:
    """Ours on the graph that the peers run, ours on what was compiled for this machine, the peers.

    `options` are of `lct-deploy serve`, each another shape of ours.
    """
    with tempfile.TemporaryDirectory(prefix="lct-bench.") as directory:
        plain = _without_compiled(bundle, Path(directory) / bundle.path.resolve().name)
        ours = {OURS: plain.path}
        if len(plain.manifest.artifacts) != len(bundle.manifest.artifacts):
            ours[COMPILED] = bundle.path
        found = [_ours(name, path, shape) for name, path in ours.items() for shape in ("", *(options or ()))]
        found += [_peer(peer, bundle, shape) for peer in peers for shape in shapes()]
        yield found


def shapes() -> Iterator[Shape]:
    """All cores in one process, and a process a core."""
    cores = available_cores()
    yield Shape(replicas=1, threads=cores)
    if cores > 1:
        yield Shape(replicas=cores, threads=1)


def _ours(name: str, path: Path, options: str) -> Contender:
    return Contender(
        name=name,
        version=f"lct-deploy {lct_deploy.__version__}",
        shape=options or "default",
        start=lambda: running_ours(path, *shlex.split(options)),
    )


def _peer(peer: Peer, bundle: Bundle, shape: Shape) -> Contender:
    return Contender(
        name=peer.name,
        version=peer.version,
        shape=str(shape),
        start=lambda: running_peer(peer, bundle, shape, photos()),
    )


def _without_compiled(bundle: Bundle, path: Path) -> Bundle:
    """The same bundle with its graphs alone: peers have no compiled ones either."""
    shutil.copytree(bundle.path, path)
    graphs = tuple(artifact for artifact in bundle.manifest.artifacts if artifact.kind == "graph")
    write_manifest(path, bundle.manifest.model_copy(update={"artifacts": graphs}))
    return open_bundle(path)
