"""How far an artifact's answers are from PyTorch's, in numpy: measures, limits, verdict."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lct_deploy.manifest import Accuracy, Flip, GateParity, LogitParity, Precision
from lct_deploy.progress import track

MIN_IMAGES = 256

# Largest |Δlogit| as a share of the largest |logit|, where a precision has such a limit.
MAX_LOGIT_ERROR: Mapping[Precision, float] = {"fp32": 1e-4}

# Least share of images on which the artifact's top-1 is the reference's, where that is the limit.
MIN_TOP1_AGREEMENT: Mapping[Precision, float] = {
    "tf32": 0.995,
    "fp16": 0.995,
    "bf16": 0.995,
    "int8": 0.98,
    "fp8": 0.98,
}

# Largest error of a gate, which is in (0, 1), against the float64 attention. The shipped checkpoint shows
# 5e-7 in fp32, 2e-3 in fp16 with every result rounded, 1e-2 in bf16 and 2e-2 in int8; networks with random
# weights 2e-5 in fp32. Over its limit an fp32 graph is wrong, and another costs more than its type should.
# tf32 rounds as fp16 does, to 10 bits.
MAX_GATE_ERROR: Mapping[Precision, float] = {
    "fp32": 5e-4,
    "tf32": 5e-3,
    "fp16": 5e-3,
    "bf16": 5e-2,
    "int8": 5e-2,
    "fp8": 5e-2,
}

MAX_ACCURACY_DROP = 0.5  # points of top-1, for int8 and fp8 where the images carry labels

SATURATED = 1e-3  # a gate that is so near to 0 or 1
_LISTED_FLIPS = 20

Floats = NDArray[np.floating]


def in_batches(
    run: Callable[[NDArray[np.uint8]], Sequence[Any]],
    images: NDArray[np.uint8],
    batch: int,
    *,
    description: str | None = None,
) -> list[NDArray[np.float32]]:
    """The outputs of `run` for images (N, H, W, 3) given in batches of exactly `batch`.

    The last batch is filled up with the first images, for graphs of a fixed batch. With a
    `description` there is a progress bar.
    """
    filled = np.concatenate([images, np.resize(images, (-len(images) % batch, *images.shape[1:]))])
    starts = range(0, len(filled), batch)
    shown = starts if description is None else track(starts, description, total=len(starts))
    parts = [run(filled[start : start + batch]) for start in shown]
    return [np.concatenate(values)[: len(images)] for values in zip(*parts, strict=True)]


def compare_logits(
    reference: NDArray[np.float32], logits: NDArray[np.float32], limit: float | None
) -> LogitParity:
    """Measures over (N, classes) logits, both finite; `limit` is the largest |Δlogit| that passes."""
    a, b = reference.astype(np.float64), logits.astype(np.float64)
    error = np.abs(a - b)
    scale = np.abs(a).max()
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = (a * b).sum(axis=1) / np.maximum(norms, np.finfo(np.float64).tiny)
    return LogitParity(
        max_abs_error=float(error.max()),
        max_abs_limit=limit,
        max_rel_error=float(error.max() / max(scale, np.finfo(np.float64).tiny)),
        min_cosine=float(cosine.min()),
        max_kl=float(_kl(a, b).max()),
        top1_agreement=float((a.argmax(axis=1) == b.argmax(axis=1)).mean()),
        top5_agreement=_top_k_agreement(a, b, 5),
        flips=_flips(a, b),
    )


def logit_limit(reference: NDArray[np.float32], precision: Precision) -> float | None:
    """The largest |Δlogit| that `precision` may show against these; None where it has no such limit."""
    share = MAX_LOGIT_ERROR.get(precision)
    return None if share is None else float(share * np.abs(reference).max())


def logit_failures(parity: LogitParity, precision: Precision) -> list[str]:
    """Why these logits do not pass the limits of their precision; empty where they do."""
    return error_failures(parity) + _agreement_failures(parity, precision)


def accuracy_failures(accuracy: Accuracy, precision: Precision) -> list[str]:
    """Why an accuracy does not pass: eight bits may lose half a point."""
    drop = accuracy.reference_top1 - accuracy.artifact_top1
    if precision not in ("int8", "fp8") or drop <= MAX_ACCURACY_DROP:
        return []
    return [f"top-1 falls by {drop:.2f} points, over the limit of {MAX_ACCURACY_DROP}"]


def _agreement_failures(parity: LogitParity, precision: Precision) -> list[str]:
    least = MIN_TOP1_AGREEMENT.get(precision, 0.0)
    if parity.top1_agreement >= least:
        return []
    return [f"top-1 agrees on {parity.top1_agreement:.2%} of the images, {precision} needs {least:.1%}"]


def error_failures(parity: LogitParity) -> list[str]:
    """Why these logits are over their error limit, or turn a top-1 that it cannot explain.

    An error within the limit can turn a top-1 whose margin is at most twice the limit, and no other.
    """
    limit = parity.max_abs_limit
    if limit is None or parity.max_abs_error <= limit:
        return []
    failures = [f"max |Δlogit| is {parity.max_abs_error:.3g}, over the limit of {limit:.3g}"]
    clear = [flip for flip in parity.flips if flip.margin > 2 * limit]
    if clear:
        failures.append(f"top-1 differs on {len(clear)} images where PyTorch's margin is clear")
    return failures


def compare_gates(layer: str, reference: NDArray[np.float64], gates: NDArray[np.float32]) -> GateParity:
    """One block's gate vectors (N, C) against the float64 attention's."""
    finite = np.isfinite(gates).all(axis=1)
    error = np.abs(reference[finite] - gates[finite])
    constant = bool(np.ptp(reference, axis=0).max() < 1e-12)
    correlations = [rank_correlation(a, b) for a, b in zip(reference[finite], gates[finite], strict=True)]
    known = [value for value in correlations if value is not None]
    return GateParity(
        layer=layer,
        max_abs_error=float(error.max()) if error.size else float("inf"),
        rank_correlation=min(known) if known and not constant else None,
        saturated=float(((gates < SATURATED) | (gates > 1 - SATURATED)).mean()),
        nan=int((~np.isfinite(gates)).sum()),
        constant=constant,
    )


def relative_error(reference: NDArray[np.float64], values: NDArray[np.float32]) -> float:
    """The largest error as a share of the reference's largest value; infinite where one is not finite."""
    error = np.abs(reference - values).max() / max(np.abs(reference).max(), np.finfo(np.float64).tiny)
    return float(error) if np.isfinite(error) else float("inf")


def context_failures(gates: Sequence[GateParity]) -> list[str]:
    """Why the contexts of an fp32 graph do not pass: they may be off by as much as its logits."""
    limit = MAX_LOGIT_ERROR["fp32"]
    return [
        f"{gate.layer}: the context is off by {gate.context_error:.1e} of its largest value, over the limit "
        f"of {limit:.0e}"
        for gate in gates
        if gate.context_error is not None and gate.context_error > limit
    ]


def first_drift(gates: Sequence[GateParity], precision: Precision) -> GateParity | None:
    """The first block in graph order whose gates are over their precision's limit, or not finite."""
    limit = MAX_GATE_ERROR[precision]
    return next((gate for gate in gates if gate.nan or gate.max_abs_error > limit), None)


def describe_drift(gate: GateParity, precision: Precision) -> str:
    """Where the gates left the reference's, and by how much."""
    limit = f"over the limit of {MAX_GATE_ERROR[precision]:.0e} for {precision}"
    measure = "values are NaN or infinite" if gate.nan else f"max error {gate.max_abs_error:.1e}, {limit}"
    return f"gates drift first in {gate.layer}: {measure}"


def softmax(logits: Floats) -> NDArray[np.float64]:
    """Probabilities along the last axis, in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def _kl(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """KL(softmax a ‖ softmax b) for each row, in nats."""
    log_p, log_q = _log_softmax(a), _log_softmax(b)
    return np.maximum((np.exp(log_p) * (log_p - log_q)).sum(axis=1), 0.0)


def _log_softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = x - x.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _top_k_agreement(a: NDArray[np.float64], b: NDArray[np.float64], k: int) -> float:
    """Share of the k best classes that both rank among their k best, averaged over images."""
    k = min(k, a.shape[1])
    top_a, top_b = np.argsort(-a, axis=1)[:, :k], np.argsort(-b, axis=1)[:, :k]
    return float(np.mean([len(set(x) & set(y)) / k for x, y in zip(top_a, top_b, strict=True)]))


def _flips(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[Flip, ...]:
    """Images whose top-1 differs, the clearest first."""
    first, other = a.argmax(axis=1), b.argmax(axis=1)
    rows = np.flatnonzero(first != other)
    flips = [
        Flip(image=int(i), reference=int(first[i]), artifact=int(other[i]), margin=_margin(a[i]))
        for i in rows
    ]
    return tuple(sorted(flips, key=lambda flip: -flip.margin)[:_LISTED_FLIPS])


def _margin(logits: NDArray[np.float64]) -> float:
    second, first = np.partition(logits, -2)[-2:]
    return float(first - second)


def rank_correlation(a: Floats, b: Floats) -> float | None:
    """Spearman's rank correlation with average ranks for ties; None where a side is constant."""
    ranks = np.stack([_ranks(a), _ranks(b)])
    ranks -= ranks.mean(axis=1, keepdims=True)
    scale = np.sqrt((ranks**2).sum(axis=1).prod())
    return float((ranks[0] * ranks[1]).sum() / scale) if scale else None


def _ranks(values: Floats) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2.0)[inverse]
