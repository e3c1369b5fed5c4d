"""A peer at work on a bundle's graph, and the same answers from it as from us."""

import json
import os
import tempfile
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.serving.peers.catalogue import BATCH, HERE, PATH, Peer
from benchmarks.serving.requests import Target, target
from benchmarks.serving.servers import Server, ServerFailedError, ask, free_port
from lct_deploy.bundle import Bundle
from lct_deploy.predictions import Prediction, top_k
from lct_deploy.preprocessing import decode
from lct_deploy.runtime import RuntimeOptions
from lct_deploy.runtime.select import open_artifact

TOLERANCE = 1e-3  # of a probability: other batches, other rounding


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How a server uses the cores: so many processes, each inferring with so many threads."""

    replicas: int
    threads: int

    def __str__(self) -> str:
        return f"{self.replicas}x{self.threads}"


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server that answers, with the requests to send it and the seconds that it took to start."""

    server: Server
    where: Target
    start_seconds: float


@contextmanager
def running_peer(
    peer: Peer,
    bundle: Bundle,
    shape: Shape,
    images: Sequence[bytes],
    python: Path | None = None,
) -> Generator[Running]:
    """Raises ServerFailedError where it is not installed, does not start or answers otherwise than we do.

    `python` is the `bin` directory of another environment than the peer's own.
    """
    if python is None and not peer.venv.installed:
        raise ServerFailedError(
            f"{peer.name} {peer.venv.why_not()}", hint="python -m benchmarks.serving.peers install"
        )
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="lct-peer.", ignore_cleanup_errors=True) as home:
        environment = _environment(peer, bundle, shape, port, Path(home))
        program, *arguments = peer.arguments(port)
        command = [str((python or peer.venv.directory / "bin") / program), *arguments]
        where = target(f"http://127.0.0.1:{port}{PATH}", [peer.body(image) for image in images])
        with Server(command, environment=environment, directory=HERE / "apps") as server:
            seconds = server.wait_until(lambda: ask(where, timeout=5)[0] == 200)
            yield Running(server=server, where=where, start_seconds=seconds)


def _environment(peer: Peer, bundle: Bundle, shape: Shape, port: int, home: Path) -> dict[str, str]:
    """All that a peer keeps, it keeps in a home of its own, which goes with it."""
    manifest = bundle.manifest
    spec = home / "spec.json"
    spec.write_text(
        json.dumps(
            {
                "graph": str(bundle.file(bundle.artifact("onnxruntime")).resolve()),
                "labels": manifest.labels,
                **manifest.input.model_dump(include={"resize", "crop", "interpolation"}),
            }
        )
    )
    return {
        **peer.environment,
        "HOME": str(home),
        "BENTOML_HOME": str(home),
        "PATH": f"{peer.venv.directory / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PEER_SPEC": str(spec),
        "PEER_HOME": str(home),
        "PEER_PORT": str(port),
        "PEER_REPLICAS": str(shape.replicas),
        "PEER_THREADS": str(shape.threads),
        "PEER_BATCH": str(BATCH),
    }


def expected_answers(bundle: Bundle, images: Sequence[bytes]) -> list[list[Prediction]]:
    """The top five of each image, on the graph that the peers run too."""
    graph = bundle.artifact("onnxruntime")
    with closing(open_artifact("onnxruntime", bundle.file(graph), RuntimeOptions(), graph)) as runtime:
        decoded = [decode(image, bundle.manifest.input.preprocessing) for image in images]
        return [top_k(runtime.infer(image[None]), bundle.manifest.labels, 5)[0] for image in decoded]


def check_answers(where: Target, expected: Sequence[Sequence[Prediction]]) -> None:
    """Raise ServerFailedError unless each request's top-1 is ours, with our probability."""
    for index, predictions in enumerate(expected):
        status, body = ask(where, index)
        if status != 200:
            raise ServerFailedError(f"answers request {index} with status {status}: {body[:200]!r}")
        best, ours = _best(json.loads(body)), predictions[0]
        same = best["index"] == ours.index and abs(best["probability"] - ours.probability) < TOLERANCE
        if not same:
            raise ServerFailedError(f"answers request {index} with {best}, not {ours.model_dump()}")


def _best(answer: Any) -> dict[str, Any]:
    """BentoML answers with a list of answers, since it takes a list of images."""
    answer = answer[0] if isinstance(answer, list) else answer
    return answer["predictions"][0][0]
