"""From a runtime's name to an opened artifact."""

import importlib
import shlex
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from lct_deploy.bundle import Bundle
from lct_deploy.errors import BundleError, RuntimeUnavailableError, UsageError
from lct_deploy.host import host_isa
from lct_deploy.kernels.cpu import VERSION as OPS_VERSION
from lct_deploy.kernels.cpu import op_library
from lct_deploy.manifest import OPERATORS, Artifact, Precision
from lct_deploy.runtime.base import ArtifactRuntime, Runtime, RuntimeOptions
from lct_deploy.runtime.batched import BatchedRuntime

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
        runtime: type[ArtifactRuntime] = getattr(importlib.import_module(module), class_name)
    except ModuleNotFoundError as error:
        raise RuntimeUnavailableError(
            f"the runtime {name} needs the package {error.name}, which is not installed",
            hint=f"pip install 'lct-deploy[{extra}]'",
        ) from error
    return runtime.open(path, options)


def open_bundled(
    bundle: Bundle, name: str, options: RuntimeOptions, precision: Precision | None = None
) -> Runtime:
    """Open what a bundle holds for `name`: its graph, and what was compiled for some batch sizes.

    `precision` None is the one that the bundle was exported for. Raises BundleError where there is
    no such graph, or where what was compiled does not fit this machine.
    """
    compiled = bundle.compiled(name, precision)
    check_host(bundle, compiled)
    graph = open_artifact(name, bundle.file(bundle.artifact(name, precision)), options)
    if not compiled:
        return graph
    return BatchedRuntime(
        graph, {a.profiles[0].opt: open_artifact(name, bundle.file(a), options) for a in compiled}
    )


def mismatches(artifact: Artifact) -> list[str]:
    """What a compiled artifact was made for and this machine is not."""
    here = {"onnxruntime": metadata.version("onnxruntime")}
    if op_library() is not None:
        here[OPERATORS] = str(OPS_VERSION)
    wrong = [
        f"{name} {version}, here it is {here.get(name, 'absent')}"
        for name, version in artifact.versions.items()
        if here.get(name) != version
    ]
    if artifact.host != host_isa():
        wrong.append(f"{artifact.host}, this machine is {host_isa()}")
    return wrong


def check_host(bundle: Bundle, compiled: Sequence[Artifact]) -> None:
    """Raise BundleError for a graph whose layout or operators are another machine's."""
    for artifact in compiled:
        if wrong := mismatches(artifact):
            batches = ",".join(str(a.profiles[0].opt) for a in compiled)
            raise BundleError(
                f"{bundle.path}: {artifact.path} was compiled for {'; and for '.join(wrong)}",
                hint=f"lct-deploy compile {shlex.quote(str(bundle.path))} --runtime {artifact.runtime} "
                f"--precision {artifact.precision} --batch {batches}",
            )
