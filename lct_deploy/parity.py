"""How far an artifact's answers are from PyTorch's, in numpy: measures, limits, verdict."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lct_deploy.manifest import Flip, GateParity, LogitParity, Precision

MIN_IMAGES = 256

# Largest |Δlogit| as a share of the largest |logit|, where a precision has such a limit.
MAX_LOGIT_ERROR: Mapping[Precision, float] = {"fp32": 1e-4}

_SATURATED = 1e-3
_LISTED_FLIPS = 20

Floats = NDArray[np.floating]


def compare_logits(
    reference: NDArray[np.float32], logits: NDArray[np.float32], precision: Precision
) -> LogitParity:
    """Measures over (N, classes) logits; both must be finite (see `logit_failures`)."""
    a, b = reference.astype(np.float64), logits.astype(np.float64)
    error = np.abs(a - b)
    scale = np.abs(a).max()
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = (a * b).sum(axis=1) / np.maximum(norms, np.finfo(np.float64).tiny)
    limit = MAX_LOGIT_ERROR.get(precision)
    return LogitParity(
        max_abs_error=float(error.max()),
        max_abs_limit=None if limit is None else float(limit * scale),
        max_rel_error=float(error.max() / max(scale, np.finfo(np.float64).tiny)),
        min_cosine=float(cosine.min()),
        max_kl=float(_kl(a, b).max()),
        top1_agreement=float((a.argmax(axis=1) == b.argmax(axis=1)).mean()),
        top5_agreement=_top_k_agreement(a, b, 5),
        flips=_flips(a, b),
    )


def logit_failures(parity: LogitParity) -> list[str]:
    """Why these logits do not pass: over the error limit, or a top-1 that it cannot explain.

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
    correlations = [_rank_correlation(a, b) for a, b in zip(reference[finite], gates[finite], strict=True)]
    known = [value for value in correlations if value is not None]
    return GateParity(
        layer=layer,
        max_abs_error=float(error.max()) if error.size else float("inf"),
        rank_correlation=min(known) if known and not constant else None,
        saturated=float(((gates < _SATURATED) | (gates > 1 - _SATURATED)).mean()),
        nan=int((~np.isfinite(gates)).sum()),
        constant=constant,
    )


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


def _rank_correlation(a: Floats, b: Floats) -> float | None:
    """Spearman's rank correlation with average ranks for ties; None where a side is constant."""
    ranks = np.stack([_ranks(a), _ranks(b)])
    ranks -= ranks.mean(axis=1, keepdims=True)
    scale = np.sqrt((ranks**2).sum(axis=1).prod())
    return float((ranks[0] * ranks[1]).sum() / scale) if scale else None


def _ranks(values: Floats) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2.0)[inverse]
