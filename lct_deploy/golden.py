"""A bundle's golden logits against a runtime on this machine, where PyTorch need not be installed."""

import numpy as np
from numpy.typing import NDArray

from lct_deploy.bundle import Bundle
from lct_deploy.errors import ParityError
from lct_deploy.manifest import LogitParity
from lct_deploy.parity import compare_logits, error_failures, in_batches, logit_limit
from lct_deploy.runtime import Runtime

# Where a precision has no limit of its own: how much further than at its verification an artifact
# may be from PyTorch. Sixteen images say too little of a share of equal top-1s.
MARGIN = 2.0


def check_golden(bundle: Bundle, runtime: Runtime, *, images: int | None = None) -> LogitParity:
    """Run the first `images` golden inputs (all by default) at every batch that is compiled, and at one.

    Returns the comparison of the batch that is furthest from PyTorch. Raises ParityError where logits
    are not finite or not PyTorch's within the limit.
    """
    golden = bundle.golden()
    inputs, reference = golden.images[:images], golden.logits[:images]
    limit = _limit(bundle, reference, runtime)
    batches = {1, *runtime.spec.compiled_batches, _other(runtime.spec.compiled_batches)}
    parities = [
        _compare(bundle, runtime, inputs, reference, batch=batch, limit=limit) for batch in sorted(batches)
    ]
    return max(parities, key=lambda parity: parity.max_abs_error)


def _other(compiled: tuple[int, ...]) -> int:
    """A batch that nothing is compiled for: it runs on the bundle's graph."""
    return next(batch for batch in range(1, len(compiled) + 2) if batch not in compiled)


def _limit(bundle: Bundle, reference: NDArray[np.float32], runtime: Runtime) -> float | None:
    precision = runtime.spec.precision
    own = logit_limit(reference, precision)
    errors = [r.logits.max_abs_error for r in bundle.manifest.parity if r.precision == precision]
    return MARGIN * max(errors) if own is None and errors else own


def _compare(
    bundle: Bundle,
    runtime: Runtime,
    inputs: NDArray[np.uint8],
    reference: NDArray[np.float32],
    *,
    batch: int,
    limit: float | None,
) -> LogitParity:
    (logits,) = in_batches(lambda chunk: [runtime.infer(chunk)], inputs, batch)
    what = f"{bundle.path}: {runtime.spec.runtime}, {runtime.spec.precision}, batch {batch}"
    if not np.isfinite(logits).all():
        raise ParityError(f"{what} gives NaN or infinite logits for its golden inputs")
    parity = compare_logits(reference, logits, limit)
    if failures := error_failures(parity):
        raise ParityError(f"{what} does not give PyTorch's answers on this machine: " + "; ".join(failures))
    return parity
