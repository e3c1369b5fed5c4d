"""From a runtime's name to an opened artifact."""

import importlib
from pathlib import Path

from lct_deploy.bundle import Bundle
from lct_deploy.errors import RuntimeUnavailableError, UsageError
from lct_deploy.runtime.base import Runtime, RuntimeOptions

# name → module, class, extra that installs it
_RUNTIMES = {
    "onnxruntime": ("lct_deploy.runtime.onnxruntime", "OnnxRuntime", "cpu"),
    "torch": ("lct_deploy.runtime.torch", "TorchRuntime", "export"),
}


def open_artifact(name: str, path: Path, options: RuntimeOptions) -> Runtime:
    """Open a graph or checkpoint with the runtime called `name`.

    Raises UsageError for an unknown name, RuntimeUnavailableError where it is not installed.
    """
    if name not in _RUNTIMES:
        raise UsageError(f"unknown runtime {name!r}", hint=f"runtimes are {', '.join(_RUNTIMES)}")
    module, class_name, extra = _RUNTIMES[name]
    try:
        runtime: type[Runtime] = getattr(importlib.import_module(module), class_name)
    except ModuleNotFoundError as error:
        raise RuntimeUnavailableError(
            f"the runtime {name} needs the package {error.name}, which is not installed",
            hint=f"pip install 'lct-deploy[{extra}]'",
        ) from error
    return runtime.open(path, options)


def open_bundled(bundle: Bundle, name: str, options: RuntimeOptions) -> Runtime:
    """Open the artifact that a bundle holds for `name`; raises BundleError where it has none."""
    return open_artifact(name, bundle.file(bundle.artifact(name)), options)
