"""What is evaluated: a network that runs, with what an image goes through before it, and its labels."""

from dataclasses import dataclass

from lct_deploy.bundle import Bundle
from lct_deploy.manifest import Precision
from lct_deploy.preprocessing import Preprocessing
from lct_deploy.runtime import Runtime, RuntimeOptions, open_bundled


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An opened network; who opened it closes its runtime."""

    name: str
    runtime: Runtime
    preprocessing: Preprocessing
    labels: tuple[str, ...]


def open_bundle_subject(
    bundle: Bundle, runtime: str, options: RuntimeOptions, precision: Precision | None = None
) -> Subject:
    """A bundle on the runtime of this name; raises what `open_bundled` does."""
    manifest = bundle.manifest
    return Subject(
        name=manifest.name,
        runtime=open_bundled(bundle, runtime, options, precision),
        preprocessing=manifest.input.preprocessing,
        labels=manifest.labels,
    )
