"""A bundle's artifacts against the checkpoint or .onnx file that it was made from."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from exporters.from_onnx import prove_onnx
from exporters.images import ParityImages, parity_images
from exporters.onnx_source import load_onnx
from exporters.proof import Proof, verify_artifact, verify_gates
from exporters.reference import prove
from exporters.variants import verify_graph
from lct_deploy.architecture import AttentionConfig
from lct_deploy.atomic import sha256_file
from lct_deploy.bundle import AnyBundle, Bundle
from lct_deploy.checkpoint import LoadOptions, load_checkpoint
from lct_deploy.errors import CheckpointError
from lct_deploy.manifest import AnyManifest, Manifest, ParityReport, Precision
from lct_deploy.runtime.engines import choose_engine, this_place
from lct_deploy.runtime.flavours import is_flavour
from lct_deploy.runtime.select import check_host


def verify_bundle(
    bundle: Bundle, checkpoint: Path, images: Path | None, runtime: str, precision: Precision | None = None
) -> list[ParityReport]:
    """Compare what a bundle holds for `runtime`, an engine or graph and compiled, with its checkpoint.

    Raises CheckpointError for a checkpoint that does not fit the bundle.
    """
    if is_flavour(runtime):
        engine = choose_engine(bundle, runtime, precision, this_place(runtime))
        proof = _proof(bundle, checkpoint, images)
        path = bundle.file(engine)
        return [verify_artifact(path, engine.precision, proof, runtime=runtime, engine=engine)]
    graph, compiled = bundle.artifact(runtime, precision), bundle.compiled(runtime, precision)
    check_host(bundle, compiled)
    proof = _proof(bundle, checkpoint, images)
    reports = [verify_graph(bundle.file(graph), graph.precision, proof, runtime=runtime)]
    reports += [
        verify_artifact(bundle.file(a), a.precision, proof, batch=a.profiles[0].opt) for a in compiled
    ]
    if gates := bundle.gates():
        reports.append(verify_gates(bundle.file(gates), proof))
    return reports


def _proof(bundle: Bundle, checkpoint: Path, images: Path | None) -> Proof:
    manifest = bundle.manifest
    prove = _opened(manifest, checkpoint)
    check_source(bundle, checkpoint)
    return prove(parity_images(manifest.input.preprocessing, images, manifest.labels))


def _opened(manifest: Manifest, source: Path) -> Callable[[ParityImages], Proof]:
    """The reference that the bundle was compared with, read from its source again."""
    if manifest.source.kind == "onnx":
        return partial(prove_onnx, load_onnx(source, mean=manifest.input.mean, std=manifest.input.std))
    options = load_options(manifest, source).model_copy(update={"num_classes": manifest.num_classes})
    return partial(prove, load_checkpoint(source, options).model, manifest.input.preprocessing)


def check_source(bundle: AnyBundle, checkpoint: Path) -> None:
    """Raise CheckpointError for a file that is not the one that the bundle was made from."""
    if sha256_file(checkpoint) != bundle.manifest.source.checkpoint_sha256:
        raise CheckpointError(
            f"{checkpoint} is not the file that {bundle.path} was made from (its SHA-256 differs)",
            hint=f"lct-deploy export {checkpoint} -o BUNDLE makes one from it",
        )


def load_options(manifest: AnyManifest, source: Path) -> LoadOptions:
    """What the bundle's export has settled about the checkpoint `source`."""
    attention = manifest.attention or AttentionConfig(kind="none")
    return LoadOptions(
        arch=manifest.arch,
        groups=attention.groups,
        epsilon=attention.epsilon,
        stride_placement=manifest.stride_placement,
        weights=manifest.source.weights if source.suffix != ".safetensors" else None,
    )
