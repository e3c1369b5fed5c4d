"""The proof that an artifact gives the reference's answers: logits on real images, gates by block.

Free of torch: the reference may be PyTorch, or a graph that has been compared with it.
"""

import platform
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exporters.gates import read_gates
from exporters.images import ParityImages
from lct_deploy.analysis.graph import GraphGates
from lct_deploy.manifest import Accuracy, Artifact, GateParity, LogitParity, ParityReport, Precision
from lct_deploy.parity import (
    accuracy_failures,
    compare_gates,
    compare_logits,
    context_failures,
    describe_drift,
    first_drift,
    in_batches,
    logit_failures,
    logit_limit,
    relative_error,
)
from lct_deploy.runtime import RuntimeOptions, open_artifact

BATCH = 8
GATE_IMAGES = 32


@dataclass(frozen=True, kw_only=True)
class Reference:
    """logits (N, classes) for all images; gates and contexts by layer, (M, C), for the first M of them.

    A reference that is a graph has no contexts.
    """

    logits: NDArray[np.float32]
    gates: dict[str, NDArray[np.float64]]
    contexts: dict[str, NDArray[np.float64]] = field(default_factory=dict[str, NDArray[np.float64]])


@dataclass(frozen=True, kw_only=True)
class Proof:
    """The reference's side of the comparison, computed once for all artifacts of a network."""

    images: ParityImages
    reference: Reference
    source: str = "PyTorch"
    versions: Mapping[str, str] = field(default_factory=dict[str, str])


def verify_artifact(
    path: Path,
    precision: Precision,
    proof: Proof,
    *,
    runtime: str = "onnxruntime",
    batch: int = BATCH,
    engine: Artifact | None = None,
) -> ParityReport:
    """Compare the artifact at `path` with the reference; the report says whether and why it fails.

    Of an `engine` only the logits are compared: nobody sees its gates.
    """
    with closing(open_artifact(runtime, path, RuntimeOptions(), engine)) as opened:
        (logits,) = in_batches(
            lambda chunk: [opened.infer(chunk)],
            proof.images.images,
            batch,
            description=f"{runtime} {path.name}",
        )
        versions = opened.spec.versions
    gates = () if engine else _compare_gates(path, proof, batch, runtime)
    parity, failures = _judge_logits(proof.reference.logits, logits, precision)
    failures += gate_failures(gates, precision)
    drift = first_drift(gates, precision)
    accuracy = _accuracy(proof, logits)
    if accuracy:
        failures += accuracy_failures(accuracy, precision)
    return ParityReport(
        artifact=path.name,
        runtime=runtime,
        precision=precision,
        reference=proof.source,
        images=proof.images.source,
        logits=parity,
        gates=gates,
        drifts_first=drift.layer if drift else None,
        accuracy=accuracy,
        warnings=gate_warnings(gates, precision),
        failures=tuple(failures),
        versions={**versions, **proof.versions, "machine": platform.machine()},
    )


def verify_gates(path: Path, proof: Proof) -> ParityReport:
    """Compare a graph by `with_gates`, its contexts too, as `analyze` reads them."""
    report = verify_artifact(path, "fp32", proof)
    images = proof.images.images[:GATE_IMAGES]
    with closing(GraphGates(path, RuntimeOptions())) as opened:
        parts = [opened.read(images[i : i + BATCH]) for i in range(0, len(images), BATCH)]
    gates = tuple(
        gate.model_copy(
            update={
                "context_error": relative_error(
                    proof.reference.contexts[gate.layer],
                    np.concatenate([part[gate.layer].context for part in parts]),
                )
            }
        )
        for gate in report.gates
    )
    given = {gate.layer for gate in gates}
    absent = [f"{layer}: is not given" for layer in proof.reference.contexts if layer not in given]
    failures = (*report.failures, *absent, *context_failures(gates))
    return report.model_copy(update={"gates": gates, "failures": failures})


def _judge_logits(
    reference: NDArray[np.float32], logits: NDArray[np.float32], precision: Precision
) -> tuple[LogitParity, list[str]]:
    bad = int((~np.isfinite(logits)).sum())
    parity = compare_logits(reference, np.nan_to_num(logits), logit_limit(reference, precision))
    failures = [f"{bad} logits are NaN or infinite"] if bad else []
    return parity, failures + logit_failures(parity, precision)


def _compare_gates(path: Path, proof: Proof, batch: int, runtime: str) -> tuple[GateParity, ...]:
    gates = read_gates(path, proof.images.images[:GATE_IMAGES], batch=batch, runtime=runtime)
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


def gate_failures(gates: tuple[GateParity, ...], precision: Precision) -> list[str]:
    """Why gates do not pass: NaN in any precision, a drift in fp32."""
    failures = [f"{gate.layer}: {gate.nan} gate values are NaN or infinite" for gate in gates if gate.nan]
    drift = first_drift(gates, precision)
    return [*failures, describe_drift(drift, precision)] if drift and precision == "fp32" else failures


def gate_warnings(gates: tuple[GateParity, ...], precision: Precision) -> tuple[str, ...]:
    """A gate that is the same for every image would hide an error in its normalisation."""
    warnings: list[str] = []
    if constant := sum(gate.constant for gate in gates):
        warnings.append(
            f"the gate is constant in {constant} of {len(gates)} attention blocks (w = 0, an untrained "
            "checkpoint?): parity cannot see an error in their normalisation"
        )
    # In fp32 a drift is a failure.
    if precision != "fp32" and (drift := first_drift(gates, precision)):
        warnings.append(describe_drift(drift, precision))
    return tuple(warnings)
