"""A bundle's golden logits against a runtime on this machine, where PyTorch need not be installed."""

from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from lct_deploy.bundle import Bundle, write_manifest
from lct_deploy.errors import ParityError
from lct_deploy.manifest import LogitParity, Precision
from lct_deploy.parity import compare_logits, error_failures, in_batches, logit_failures, logit_limit
from lct_deploy.runtime import Runtime, RuntimeOptions, open_bundled
from lct_deploy.runtime.engines import choose_engine, this_place
from lct_deploy.runtime.flavours import FlavourName, is_flavour

# Where a precision has no limit of its own: how much further than at its verification an artifact
# may be from PyTorch. Sixteen images say too little of a share of equal top-1s.
MARGIN = 2.0


def verify_golden(
    bundle: Bundle, name: str, options: RuntimeOptions, precision: Precision | None, *, command: str
) -> LogitParity:
    """Compare what a bundle holds for the runtime `name` with its golden logits.

    An engine that agrees is from then on verified, and may be served. Raises ParityError for one that
    does not; the bundle is then as it was.
    """
    with closing(open_bundled(bundle, name, options, precision, unverified=True)) as runtime:
        parity = check_golden(bundle, runtime)
    if is_flavour(name):
        _promote(bundle, name, precision, command)
    return parity


def _promote(bundle: Bundle, name: FlavourName, precision: Precision | None, command: str) -> None:
    engine = choose_engine(bundle, name, precision, this_place(name))
    if engine.verified:
        return
    manifest = bundle.manifest
    verified = engine.model_copy(update={"verified": True})
    artifacts = tuple(verified if a == engine else a for a in manifest.artifacts)
    update = {"artifacts": artifacts, "commands": (*manifest.commands, command)}
    write_manifest(bundle.path, manifest.model_copy(update=update))


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
    """A batch that nothing is compiled for: it runs on the bundle's graph, or is filled up to one that is."""
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
    # A precision that nothing tells the error of: its top-1 has to be PyTorch's, as in a full proof.
    failures = error_failures(parity) if limit else logit_failures(parity, runtime.spec.precision)
    if failures:
        raise ParityError(f"{what} does not give PyTorch's answers on this machine: " + "; ".join(failures))
    return parity
