"""What is compiled from a bundle's graphs: its proof, and how it gets into the bundle."""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from exporters.gates import read_gates
from exporters.images import ParityImages
from exporters.proof import BATCH, GATE_IMAGES, Proof, Reference
from lct_deploy.bundle import Bundle, write_manifest
from lct_deploy.manifest import Artifact, Manifest, ParityReport
from lct_deploy.parity import in_batches
from lct_deploy.runtime import RuntimeOptions, open_artifact


def prove_by_graph(bundle: Bundle, images: ParityImages) -> Proof:
    """The answers of the bundle's fp32 graph, which the export has compared with the network's."""
    artifact = bundle.artifact("onnxruntime", "fp32")
    path = bundle.file(artifact)
    with closing(open_artifact("onnxruntime", path, RuntimeOptions())) as opened:
        (logits,) = in_batches(
            lambda chunk: [opened.infer(chunk)], images.images, BATCH, description=artifact.path
        )
    gates = read_gates(path, images.images[:GATE_IMAGES], batch=BATCH)
    reference = Reference(
        logits=logits, gates={layer: gate.astype(np.float64) for layer, gate in gates.items()}
    )
    return Proof(images=images, reference=reference, source=artifact.path)


@contextmanager
def moved_in(bundle: Bundle, work: Path, artifacts: Sequence[Artifact]) -> Generator[None]:
    """The artifacts' files from `work` in their places; gone again where the manifest cannot name them."""
    known = {artifact.path for artifact in bundle.manifest.artifacts}
    directories = {bundle.file(artifact).parent for artifact in artifacts} - {bundle.path}
    try:
        for directory in directories:
            directory.mkdir(exist_ok=True)
        for artifact in artifacts:
            (work / Path(artifact.path).name).rename(bundle.file(artifact))
        yield
    except BaseException:
        for artifact in artifacts:
            if artifact.path not in known:
                bundle.file(artifact).unlink(missing_ok=True)
        for directory in directories:
            if directory.is_dir() and not any(directory.iterdir()):
                directory.rmdir()
        raise


def record(
    bundle: Bundle,
    artifacts: Sequence[Artifact],
    reports: Sequence[ParityReport],
    command: str,
    *,
    replaces: Callable[[Artifact], bool],
) -> Manifest:
    """Name new artifacts in the manifest, in the place of those that they replace, whose files then go."""
    old = bundle.manifest
    gone = [artifact for artifact in old.artifacts if replaces(artifact)]
    forgotten = {Path(artifact.path).name for artifact in gone}
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
