"""The proof that an artifact gives PyTorch's answers: logits on real images, gates block by block."""

import platform
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from exporters.gates import read_gates
from exporters.images import ParityImages, parity_images
from exporters.reference import Reference, compute_reference
from lct_deploy.bundle import Bundle
from lct_deploy.checkpoint import LoadOptions, load_checkpoint
from lct_deploy.errors import CheckpointError
from lct_deploy.manifest import Accuracy, GateParity, LogitParity, ParityReport, Precision
from lct_deploy.models import ResNet
from lct_deploy.parity import compare_gates, compare_logits, logit_failures
from lct_deploy.preprocessing import Preprocessing
from lct_deploy.progress import track
from lct_deploy.runtime import Runtime, RuntimeOptions, open_artifact

BATCH = 8
GATE_IMAGES = 32


@dataclass(frozen=True, kw_only=True)
class Proof:
    """PyTorch's side of the comparison, computed once for all artifacts of a checkpoint."""

    images: ParityImages
    reference: Reference


def prove(network: ResNet, preprocessing: Preprocessing, images: ParityImages) -> Proof:
    """Run PyTorch over the images."""
    reference = compute_reference(network, preprocessing, images.images, gate_images=GATE_IMAGES)
    return Proof(images=images, reference=reference)


def verify_artifact(
    path: Path, runtime: str, precision: Precision, proof: Proof, options: RuntimeOptions | None = None
) -> ParityReport:
    """Compare the artifact at `path` with PyTorch; the report says whether and why it fails."""
    opened = open_artifact(runtime, path, options or RuntimeOptions())
    try:
        logits = _run(opened, proof.images.images, f"{opened.spec.runtime} {path.name}")
        versions = opened.spec.versions
    finally:
        opened.close()
    gates = _compare_gates(path, proof)
    parity, failures = _judge_logits(proof.reference.logits, logits, precision)
    failures += [f"{gate.layer}: {gate.nan} gate values are NaN or infinite" for gate in gates if gate.nan]
    return ParityReport(
        artifact=path.name,
        runtime=runtime,
        precision=precision,
        images=proof.images.source,
        logits=parity,
        gates=gates,
        accuracy=_accuracy(proof, logits),
        warnings=_warnings(gates),
        failures=tuple(failures),
        versions={**versions, "torch": torch.__version__, "machine": platform.machine()},
    )


def verify_bundle(bundle: Bundle, checkpoint: Path, images: Path | None, runtime: str) -> ParityReport:
    """Compare a bundle's artifact for `runtime` with the checkpoint that it was made from.

    Raises CheckpointError for a checkpoint that does not fit the bundle.
    """
    manifest = bundle.manifest
    options = LoadOptions(
        arch=manifest.arch,
        num_classes=manifest.num_classes,
        groups=manifest.attention.groups,
        epsilon=manifest.attention.epsilon,
        stride_placement=manifest.stride_placement,
        weights=manifest.source.weights if checkpoint.suffix != ".safetensors" else None,
    )
    preprocessing = manifest.input.preprocessing
    loaded = load_checkpoint(checkpoint, options)
    if loaded.sha256 != manifest.source.checkpoint_sha256:
        raise CheckpointError(
            f"{checkpoint} is not the file that {bundle.path} was made from (its SHA-256 differs)",
            hint=f"lct-deploy export {checkpoint} -o BUNDLE makes one from it",
        )
    artifact = bundle.artifact(runtime)
    proof = prove(loaded.model, preprocessing, parity_images(preprocessing, images, manifest.labels))
    return verify_artifact(bundle.file(artifact), runtime, artifact.precision, proof)


def _run(runtime: Runtime, images: NDArray[np.uint8], description: str) -> NDArray[np.float32]:
    starts = range(0, len(images), BATCH)
    batches = (runtime.infer(images[start : start + BATCH]) for start in starts)
    return np.concatenate(list(track(batches, description, total=len(starts))))


def _judge_logits(
    reference: NDArray[np.float32], logits: NDArray[np.float32], precision: Precision
) -> tuple[LogitParity, list[str]]:
    bad = int((~np.isfinite(logits)).sum())
    parity = compare_logits(reference, np.nan_to_num(logits), precision)
    failures = [f"{bad} logits are NaN or infinite"] if bad else []
    return parity, failures + logit_failures(parity)


def _compare_gates(path: Path, proof: Proof) -> tuple[GateParity, ...]:
    gates = read_gates(path, proof.images.images[:GATE_IMAGES], batch=BATCH)
    return tuple(
        compare_gates(layer, proof.reference.gates[layer], values) for layer, values in gates.items()
    )


def _accuracy(proof: Proof, logits: NDArray[np.float32]) -> Accuracy | None:
    labels = proof.images.labels
    if labels is None:
        return None
    return Accuracy(
        reference_top1=_top1(proof.reference.logits, labels),
        artifact_top1=_top1(logits, labels),
        images=len(labels),
    )


def _top1(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    return 100.0 * float((logits[: len(labels)].argmax(axis=1) == labels).mean())


def _warnings(gates: tuple[GateParity, ...]) -> tuple[str, ...]:
    """A gate that is the same for every image would hide an error in its normalisation."""
    constant = sum(gate.constant for gate in gates)
    if not constant:
        return ()
    return (
        f"the gate is constant in {constant} of {len(gates)} attention blocks (w = 0, an untrained "
        "checkpoint?): parity cannot see an error in their normalisation",
    )
