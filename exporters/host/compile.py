"""`lct-deploy compile --runtime onnxruntime`: a bundle's graph laid out for this machine."""

import tempfile
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto

from exporters.gates import read_gates
from exporters.host.layout import HostGraph, lay_out
from exporters.images import parity_images
from exporters.proof import BATCH, GATE_IMAGES, Proof, Reference, verify_artifact
from lct_deploy.atomic import check_writable, sha256_file
from lct_deploy.bundle import MANIFEST, Bundle, write_manifest
from lct_deploy.errors import ParityError, UsageError
from lct_deploy.host import host_isa
from lct_deploy.kernels.cpu import VERSION as OPS_VERSION
from lct_deploy.kernels.cpu import op_library
from lct_deploy.manifest import OPERATORS, Artifact, Manifest, ParityReport, Precision, Profile
from lct_deploy.parity import in_batches
from lct_deploy.progress import stderr, track
from lct_deploy.report import describe_parity
from lct_deploy.runtime import RuntimeOptions, open_artifact
from lct_deploy.runtime.select import mismatches

RUNTIME = "onnxruntime"
DIRECTORY = "compiled"
MAX_BATCH = 128

Announce = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class CompileOptions:
    """What to compile: batch sizes, a precision that the bundle holds, and the images of the proof."""

    batches: tuple[int, ...] = (1,)
    precision: Precision | None = None
    images: Path | None = None


def compile_for_host(
    bundle: Bundle, options: CompileOptions, *, command: str, announce: Announce
) -> Manifest:
    """Lay out the bundle's graph for this machine, one artifact a batch, each compared with that graph.

    The graph has been compared with PyTorch when it was exported; the golden logits are PyTorch's own.
    Raises UsageError for a batch out of range, ExportError for a graph that cannot be laid out,
    ParityError for one that does not agree; the bundle is then as it was.
    """
    _check_batches(options.batches)
    source = bundle.artifact(RUNTIME, options.precision)
    model = onnx.load(bundle.file(source))
    proof = _prove(bundle, options.images)
    check_writable(bundle.path / MANIFEST)
    with tempfile.TemporaryDirectory(dir=bundle.path, prefix=".compile.") as work:
        made = [
            _compile_batch(model, source, proof, batch, Path(work), announce)
            for batch in track(sorted(set(options.batches)), "compiling", total=len(set(options.batches)))
        ]
        artifacts = [artifact for artifact, _ in made]
        with _moved(bundle, Path(work), artifacts):
            return _record(bundle, artifacts, [report for _, report in made], command)


@contextmanager
def _moved(bundle: Bundle, work: Path, artifacts: list[Artifact]) -> Generator[None]:
    """The files in their places; gone again where the manifest cannot be made to name them."""
    known = {artifact.path for artifact in bundle.manifest.artifacts}
    directory = bundle.path / DIRECTORY
    try:
        directory.mkdir(exist_ok=True)
        for artifact in artifacts:
            (work / Path(artifact.path).name).rename(bundle.file(artifact))
        yield
    except BaseException:
        for artifact in artifacts:
            if artifact.path not in known:
                bundle.file(artifact).unlink(missing_ok=True)
        if not any(directory.iterdir()):
            directory.rmdir()
        raise


def _compile_batch(
    model: ModelProto, source: Artifact, proof: Proof, batch: int, work: Path, announce: Announce
) -> tuple[Artifact, ParityReport]:
    """One graph, saved in `work` under its final name: its hash is in it, so that none is replaced."""
    with stderr.status(f"laying out the graph for {batch} images …"):
        graph = lay_out(model, source.precision, batch=batch, library=op_library() is not None)
    saved = work / "graph.onnx"
    onnx.save(graph.model, saved)
    digest = sha256_file(saved)
    path = saved.rename(work / f"{RUNTIME}-{source.precision}-b{batch}-{digest[:8]}.onnx")
    report = verify_artifact(path, source.precision, proof, runtime=RUNTIME, batch=batch)
    announce(f"{path.name}: attention: {graph.attention}")
    announce(describe_parity(report))
    if not report.passed:
        raise ParityError(
            f"{path.name} does not agree with {proof.source}, nothing is added to the bundle",
            hint="the lines marked failure above say by how much",
        )
    return _artifact(path.name, digest, source, graph, batch), report


def _check_batches(batches: tuple[int, ...]) -> None:
    wrong = [batch for batch in batches if not 1 <= batch <= MAX_BATCH]
    if wrong or not batches:
        raise UsageError(
            f"{', '.join(map(str, wrong)) or 'nothing'} cannot be compiled for; batches are 1 to {MAX_BATCH}",
            hint="--batch 1,8",
        )


def _prove(bundle: Bundle, directory: Path | None) -> Proof:
    """The answers of the bundle's fp32 graph, which the export has compared with the network's."""
    artifact = bundle.artifact(RUNTIME, "fp32")
    path = bundle.file(artifact)
    manifest = bundle.manifest
    images = parity_images(manifest.input.preprocessing, directory, manifest.labels)
    with closing(open_artifact(RUNTIME, path, RuntimeOptions())) as opened:
        (logits,) = in_batches(
            lambda chunk: [opened.infer(chunk)], images.images, BATCH, description=artifact.path
        )
    gates = read_gates(path, images.images[:GATE_IMAGES], batch=BATCH)
    reference = Reference(
        logits=logits, gates={layer: gate.astype(np.float64) for layer, gate in gates.items()}
    )
    return Proof(images=images, reference=reference, source=artifact.path)


def _artifact(name: str, digest: str, source: Artifact, graph: HostGraph, batch: int) -> Artifact:
    versions = {"onnxruntime": metadata.version("onnxruntime")}
    if graph.needs_library:
        versions[OPERATORS] = str(OPS_VERSION)
    return Artifact(
        path=f"{DIRECTORY}/{name}",
        sha256=digest,
        runtime=RUNTIME,
        kind="compiled",
        precision=source.precision,
        profiles=(Profile(min=batch, opt=batch, max=batch),),
        host=host_isa(),
        versions=versions,
        verified=True,
        source=source.path,
        attention=graph.attention,
    )


def _record(bundle: Bundle, artifacts: list[Artifact], reports: list[ParityReport], command: str) -> Manifest:
    """The new artifacts take the place of their forerunners, and of those that no longer fit this machine."""
    old = bundle.manifest
    batches = {artifact.profiles for artifact in artifacts}
    gone = [
        a
        for a in old.artifacts
        if (a.runtime, a.kind) == (RUNTIME, "compiled")
        and ((a.precision == artifacts[0].precision and a.profiles in batches) or mismatches(a))
    ]
    forgotten = {Path(a.path).name for a in gone}
    manifest = old.model_copy(
        update={
            "artifacts": (*(a for a in old.artifacts if a not in gone), *artifacts),
            "parity": (*(r for r in old.parity if r.artifact not in forgotten), *reports),
            "commands": (*old.commands, command),
        }
    )
    write_manifest(bundle.path, manifest)
    for path in {a.path for a in gone} - {a.path for a in artifacts}:
        (bundle.path / path).unlink(missing_ok=True)
    return manifest
