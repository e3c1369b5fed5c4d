"""The key of a build: of all that could make another engine of it."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from exporters.tensorrt.options import BuildOptions
from lct_deploy import __version__
from lct_deploy.errors import UsageError
from lct_deploy.manifest import Artifact
from lct_deploy.runtime.flavours import Flavour


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an engine is built. A TensorRT engine is tuned there, an RTX one depends on none of it."""

    gpu: str | None
    device: str | None
    driver: str | None


def build_key(graph: str, options: BuildOptions, *, flavour: Flavour, place: Place) -> str:
    """SHA-256 of the graph's, what was asked of the builder, the builder, and what it builds on and for.

    The timing cache counts with its contents: call this again after the build, which has added to it.
    """
    times = options.timing_cache and read_timing_cache(options.timing_cache)
    parts = {
        "graph": graph,
        "flavour": [flavour.name, flavour.version],
        "lct-deploy": __version__,  # its builder settings, plugins and kernels
        "precision": options.precision,
        "profiles": [profile.model_dump() for profile in options.profiles],
        "gpus": options.gpus,
        "options": options.described(),
        "timing cache": None if times is None else hashlib.sha256(times).hexdigest(),
        "attention": options.attention,
        "place": None if flavour.is_rtx else [place.device, place.driver],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read_timing_cache(path: Path) -> bytes | None:
    """What is in the file, None where there is none yet; raises UsageError where it cannot be read."""
    try:
        return path.read_bytes() if path.exists() else None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error


def find_build(artifacts: Iterable[Artifact], key: str) -> Artifact | None:
    """The engine of an equal build."""
    return next((a for a in artifacts if a.build is not None and a.build.key == key), None)
