"""Where bundles are: those named one by one, and those found in model repositories.

A repository is a directory of bundles, or of directories with a bundle for each version of a model:

    repository/resnet/manifest.json
    repository/resnet/1/manifest.json, repository/resnet/2/manifest.json
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lct_deploy.bundle import MANIFEST, read_manifest
from lct_deploy.errors import LctDeployError, UsageError


@dataclass(frozen=True, kw_only=True)
class Source:
    """A bundle that may be served; `named` one by one, or found in a repository."""

    name: str
    version: str
    path: Path
    named: bool


@dataclass(frozen=True, kw_only=True)
class Broken:
    """A directory of a repository whose manifest cannot be read, called as the directory is."""

    name: str
    path: Path
    reason: str


def scan(paths: Sequence[Path]) -> tuple[list[Source], list[Broken]]:
    """All bundles at `paths`, now.

    Raises BundleError for a named one that is none, UsageError for two that are the same model.
    """
    sources: list[Source] = []
    broken: list[Broken] = []
    for path in paths:
        if (path / MANIFEST).exists() or not _is_repository(path):
            sources.append(_source(path, named=True))
            continue
        for found in _bundles(path):
            try:
                sources.append(_source(found, named=False))
            except LctDeployError as error:
                broken.append(Broken(name=found.name, path=found, reason=error.message))
    _check_unique(sources)
    return sources, broken


def chosen(sources: Iterable[Source], name: str) -> list[Source]:
    """What of the model called `name` is served: each version that was named, and a repository's latest."""
    of_name = [source for source in sources if source.name == name]
    found = [source for source in of_name if not source.named]
    return [
        *(source for source in of_name if source.named),
        *sorted(found, key=lambda s: version_key(s.version))[-1:],
    ]


def version_key(version: str) -> list[tuple[int, int, str]]:
    """For sorting: numbers count as numbers, so that 10 comes after 9; 1.0-rc1 comes before 1.0."""
    parts = re.findall(r"[0-9]+|[^0-9.]+", version)
    end = (1, -1, "")
    return [*((1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts), end]


def _source(path: Path, *, named: bool) -> Source:
    manifest = read_manifest(path)
    return Source(name=manifest.name, version=manifest.version, path=path, named=named)


def _is_repository(path: Path) -> bool:
    return path.is_dir() and any(True for _ in _bundles(path))


def _bundles(repository: Path) -> list[Path]:
    manifests = [*repository.glob(f"*/{MANIFEST}"), *repository.glob(f"*/*/{MANIFEST}")]
    # A bundle that is being written has a temporary name with a leading dot.
    return sorted(
        file.parent
        for file in manifests
        if not any(part.startswith(".") for part in file.relative_to(repository).parts)
    )


def _check_unique(sources: Sequence[Source]) -> None:
    seen: dict[tuple[str, str], Path] = {}
    for source in sources:
        other = seen.setdefault((source.name, source.version), source.path)
        if other is not source.path:
            raise UsageError(
                f"{other} and {source.path} are both {source.name} version {source.version}",
                hint="export one again with another --name or --model-version",
            )
