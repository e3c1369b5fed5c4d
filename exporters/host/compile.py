"""`lct-deploy compile --runtime onnxruntime`: a bundle's graph laid out for this machine."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import onnx
from onnx import ModelProto

from exporters.compiled import moved_in, prove_by_graph, record
from exporters.host.layout import HostGraph, lay_out
from exporters.images import parity_images
from exporters.proof import Proof, verify_artifact
from lct_deploy.atomic import check_writable, sha256_file
from lct_deploy.bundle import MANIFEST, Bundle
from lct_deploy.errors import ParityError, UsageError
from lct_deploy.host import host_isa
from lct_deploy.kernels.cpu import VERSION as OPS_VERSION
from lct_deploy.kernels.cpu import op_library
from lct_deploy.manifest import OPERATORS, Artifact, Manifest, ParityReport, Precision, Profile
from lct_deploy.progress import stderr, track
from lct_deploy.report import describe_parity
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
    spec, labels = bundle.manifest.input, bundle.manifest.labels
    proof = prove_by_graph(bundle, parity_images(spec.preprocessing, options.images, labels))
    check_writable(bundle.path / MANIFEST)
    with tempfile.TemporaryDirectory(dir=bundle.path, prefix=".compile.") as work:
        made = [
            _compile_batch(model, source, proof, batch, Path(work), announce)
            for batch in track(sorted(set(options.batches)), "compiling", total=len(set(options.batches)))
        ]
        artifacts = [artifact for artifact, _ in made]
        reports = [report for _, report in made]
        with moved_in(bundle, Path(work), artifacts):
            return record(bundle, artifacts, reports, command, replaces=_replaces(artifacts))


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


def _replaces(artifacts: list[Artifact]) -> Callable[[Artifact], bool]:
    """Those of the same precision and batch, and those that no longer fit this machine."""
    made = {(artifact.precision, artifact.profiles) for artifact in artifacts}

    def replaces(old: Artifact) -> bool:
        if (old.runtime, old.kind) != (RUNTIME, "compiled"):
            return False
        return (old.precision, old.profiles) in made or bool(mismatches(old))

    return replaces
