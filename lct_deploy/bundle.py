"""Open a bundle: manifest and every file checked before anything else reads them.

The hashes detect damage and mix-ups. They do not stop someone who can write the bundle, since the
manifest lies beside what it hashes.
"""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from lct_deploy.atomic import atomic_file, sha256_file
from lct_deploy.errors import BundleError, UsageError
from lct_deploy.manifest import (
    SCHEMA_VERSION,
    AnyManifest,
    Artifact,
    BackboneManifest,
    FileRecord,
    Manifest,
    Precision,
)
from lct_deploy.rebuild import compile_command, export_command

MANIFEST = "manifest.json"
GRAPH = "model.onnx"
GATES = "gates.onnx"
GOLDEN = "golden.npz"

OneBundle = TypeVar("OneBundle", bound="AnyBundle")


@dataclass(frozen=True, kw_only=True)
class Golden:
    """Inputs (N, H, W, 3) uint8 and PyTorch's logits (N, classes) float32 for them."""

    images: NDArray[np.uint8]
    logits: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class BackboneGolden:
    """An input (1, H, W, 3) uint8 of some size, and PyTorch's maps for it by name, float32."""

    image: NDArray[np.uint8]
    maps: dict[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class AnyBundle:
    """A verified bundle on disk, of whatever kind."""

    path: Path
    manifest: AnyManifest

    def file(self, record: FileRecord) -> Path:
        return self.path / record.path

    def is_whole(self, record: FileRecord) -> bool:
        """Whether a file is there and has the hash that it must have."""
        return self.file(record).is_file() and sha256_file(self.file(record)) == record.sha256

    def artifact(
        self, runtime: str, precision: Precision | None = None, *, spelled_for: str | None = None
    ) -> Artifact:
        """The graph made for `runtime`, or the portable one where the runtime can read it.

        One that is `spelled_for` another runtime comes first. `precision` None is the one that the
        bundle was exported for. Raises BundleError where there is no such graph, or where it has not
        been verified.
        """
        wanted = precision or self.manifest.precision
        graphs = [a for a in self.manifest.artifacts if a.kind == "graph"]
        names = (runtime, "portable") if runtime == "onnxruntime" else (runtime,)
        for name in (spelled_for, *names) if spelled_for else names:
            for artifact in graphs:
                if (artifact.runtime, artifact.precision) == (name, wanted):
                    return self._verified(artifact)
        held = sorted({f"{a.precision} for {a.runtime}" for a in graphs})
        raise BundleError(
            f"{self.path}: holds no {wanted} graph that {runtime} can run",
            hint=f"it has {', '.join(held)}" + (_openvino_graph(wanted) if runtime == "openvino" else ""),
        )

    def compiled(self, runtime: str, precision: Precision | None = None) -> list[Artifact]:
        """What was compiled for `runtime` in `precision`; raises BundleError for what is not verified."""
        wanted = (runtime, precision or self.manifest.precision)
        found = [a for a in self.manifest.artifacts if a.kind == "compiled"]
        return [self._verified(a) for a in found if (a.runtime, a.precision) == wanted]

    def gates(self) -> Artifact | None:
        """The graph that gives contexts and gates, where the bundle was exported with it."""
        found = (a for a in self.manifest.artifacts if a.kind == "gates")
        return next(map(self._verified, found), None)

    def _verified(self, artifact: Artifact) -> Artifact:
        if not artifact.verified:
            raise BundleError(
                f"{self.path}: {artifact.path} has not been verified against PyTorch on this target",
                hint=f"lct-deploy verify {shlex.quote(str(self.path))}",
            )
        return artifact


@dataclass(frozen=True, kw_only=True)
class Bundle(AnyBundle):
    """A classifier."""

    manifest: Manifest

    def golden(self) -> Golden:
        with np.load(self.file(self.manifest.golden), allow_pickle=False) as arrays:
            return Golden(images=arrays["images"], logits=arrays["logits"])


@dataclass(frozen=True, kw_only=True)
class BackboneBundle(AnyBundle):
    """A backbone: maps for a detector, no classes."""

    manifest: BackboneManifest

    def golden(self) -> list[BackboneGolden]:
        """Each with an image of another size."""
        names = self.manifest.names
        with np.load(self.file(self.manifest.golden), allow_pickle=False) as arrays:
            return [
                BackboneGolden(
                    image=arrays[f"image_{i}"], maps={name: arrays[f"{name}_{i}"] for name in names}
                )
                for i in range(len(arrays) // (1 + len(names)))
            ]


def open_bundle(path: Path, *, compiled: bool = True) -> Bundle:
    """A classifier's bundle.

    Raises BundleError for one that is absent, incomplete, changed or of another schema, UsageError for
    a backbone. Not `compiled`: what was compiled may be damaged, for it is to be compiled again.
    """
    return _checked(Bundle(path=path, manifest=read_manifest(path)), compiled=compiled)


def open_any_bundle(path: Path) -> Bundle | BackboneBundle:
    """`open_bundle`, for what takes backbones too."""
    manifest = read_any_manifest(path)
    if isinstance(manifest, BackboneManifest):
        return _checked(BackboneBundle(path=path, manifest=manifest))
    return _checked(Bundle(path=path, manifest=manifest))


def _checked(bundle: OneBundle, *, compiled: bool = True) -> OneBundle:
    for record in (*bundle.manifest.artifacts, bundle.manifest.golden):
        _check_place(bundle.path, record)
        if compiled or not _is_compiled(record):
            _check_content(bundle, record)
    return bundle


def write_manifest(path: Path, manifest: AnyManifest) -> None:
    """Replace the manifest of the bundle at `path`, last of all that changes in it."""
    with atomic_file(path / MANIFEST) as temporary:
        temporary.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_manifest(path: Path) -> Manifest:
    """A classifier's manifest alone, its files unchecked; raises what `open_bundle` raises."""
    manifest = read_any_manifest(path)
    if isinstance(manifest, BackboneManifest):
        raise UsageError(
            f"{path}: a backbone ({', '.join(manifest.names)} of {manifest.arch}), not a classifier",
            hint="lct-deploy inspect and verify take backbones; docs/backbone.md says how to run one",
        )
    return manifest


def read_any_manifest(path: Path) -> Manifest | BackboneManifest:
    """The manifest alone, its files unchecked: `open_any_bundle` checks them. Raises BundleError."""
    if not path.is_dir():
        raise BundleError(f"{path}: no such bundle (a directory with a {MANIFEST})")
    file = path / MANIFEST
    if not file.is_file():
        raise BundleError(f"{path}: not a bundle, it has no {MANIFEST}", hint=export_command(path))
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise BundleError(f"{file}: not JSON: {error}", hint=export_command(path)) from error
    fields = cast("dict[str, Any]", content) if isinstance(content, dict) else {}
    version = fields.get("schema_version")
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{file}: schema version {version}, this lct-deploy reads {SCHEMA_VERSION}",
            hint=export_command(path),
        )
    model = BackboneManifest if fields.get("kind") == "backbone" else Manifest
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5]]
        raise BundleError(
            f"{file}: not a valid manifest: {'; '.join(lines)}", hint=export_command(path)
        ) from error


def _openvino_graph(precision: Precision) -> str:
    """Where other runtimes read graphs that are made for none, OpenVINO needs one of its own."""
    return f"; lct-deploy export CHECKPOINT -o BUNDLE --for openvino --precision {precision} makes one"


def _is_compiled(record: FileRecord) -> TypeGuard[Artifact]:
    return isinstance(record, Artifact) and record.kind == "compiled"


def _check_place(root: Path, record: FileRecord) -> None:
    if not (root / record.path).resolve().is_relative_to(root.resolve()):
        raise BundleError(f"{root}: {record.path} leads outside the bundle")


def _check_content(bundle: AnyBundle, record: FileRecord) -> None:
    if bundle.is_whole(record):
        return
    root, there = bundle.path, bundle.file(record).is_file()
    what = "has changed since it was verified (its SHA-256 differs)" if there else "is missing"
    again = compile_command(root, record) if _is_compiled(record) else export_command(root, bundle.manifest)
    raise BundleError(f"{root}: {record.path} {what}", hint=again)
