"""A bundle's golden logits against a runtime on this machine, where PyTorch need not be installed."""

import numpy as np

from lct_deploy.bundle import Bundle
from lct_deploy.errors import ParityError
from lct_deploy.manifest import LogitParity
from lct_deploy.parity import compare_logits, logit_failures
from lct_deploy.runtime import Runtime


def check_golden(bundle: Bundle, runtime: Runtime, *, images: int | None = None) -> LogitParity:
    """Run the first `images` golden inputs (all by default) and compare.

    Raises ParityError where the logits are not finite or not PyTorch's within the precision's limit.
    """
    golden = bundle.golden()
    reference = golden.logits[:images]
    logits = np.concatenate([runtime.infer(image[None]) for image in golden.images[:images]])
    spec = runtime.spec
    if not np.isfinite(logits).all():
        raise ParityError(f"{bundle.path}: {spec.runtime} gives NaN or infinite logits for its golden inputs")
    parity = compare_logits(reference, logits, spec.precision)
    if failures := logit_failures(parity):
        raise ParityError(
            f"{bundle.path}: {spec.runtime} does not give PyTorch's answers on this machine: "
            + "; ".join(failures)
        )
    return parity
