"""The servers that are compared with ours, and how each is run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.serving.requests import Body, form, raw
from benchmarks.venvs import Venv

HERE = Path(__file__).parent
PATH = "/classify"
BATCH = 8


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A server. `arguments` of a port are what its environment's `bin` is called with."""

    name: str
    package: str  # whose version is reported
    arguments: Callable[[int], tuple[str, ...]]
    body: Callable[[bytes], Body]
    environment: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def venv(self) -> Venv:
        return Venv(name=self.name, requirements=HERE / "requirements" / f"{self.name}.txt")

    @property
    def version(self) -> str:
        """The pinned one."""
        return self.venv.version(self.package)


def _script(name: str) -> Callable[[int], tuple[str, ...]]:
    return lambda _: ("python", f"{name}_server.py")


def _bentoml(port: int) -> tuple[str, ...]:
    return ("bentoml", "serve", "bentoml_server:Server", "--host", "127.0.0.1", "--port", str(port))


PEERS = (
    Peer(name="fastapi", package="fastapi", arguments=_script("fastapi"), body=raw),
    Peer(
        name="litserve",
        package="litserve",
        arguments=_script("litserve"),
        body=lambda image: form(image, "content"),
    ),
    Peer(
        name="bentoml",
        package="bentoml",
        arguments=_bentoml,
        body=lambda image: form(image, "images"),
        environment={"BENTOML_DO_NOT_TRACK": "True"},
    ),
    Peer(
        name="ray",
        package="ray",
        arguments=_script("ray"),
        body=raw,
        # What its guide to performance recommends.
        environment={"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_USAGE_STATS_ENABLED": "0"},
    ),
)
