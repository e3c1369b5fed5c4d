"""What a bundle holds for a runtime, as `predict` and `serve` run it."""

from benchmarks.measure.messages import Subject
from benchmarks.measure.openers import Runner
from lct_deploy.bundle import Bundle
from lct_deploy.golden import check_golden
from lct_deploy.runtime import RuntimeOptions, open_bundled


def open_runner(subject: Subject, bundle: Bundle) -> Runner:
    """Raises ParityError where it does not answer as PyTorch did: such a speed would be of no use."""
    options = RuntimeOptions(threads=subject.threads, provider=subject.provider)
    runtime = open_bundled(bundle, subject.runtime, options, subject.precision)
    check_golden(bundle, runtime)
    spec = runtime.spec
    return Runner(
        infer=runtime.infer,
        runtime=spec.runtime,
        precision=spec.precision,
        device=spec.device,
        compiled_batches=spec.compiled_batches,
        profile=runtime.profile,
    )
