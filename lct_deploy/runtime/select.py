"""From a runtime's name to an opened artifact."""

import importlib
import shlex
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from lct_deploy.bundle import BackboneBundle, Bundle
from lct_deploy.errors import BundleError, RuntimeUnavailableError, UsageError
from lct_deploy.host import host_isa
from lct_deploy.kernels.cpu import VERSION as OPS_VERSION
from lct_deploy.kernels.cpu import op_library
from lct_deploy.manifest import OPERATORS, Artifact, Precision
from lct_deploy.runtime.base import ArtifactRuntime, Runtime, RuntimeOptions
from lct_deploy.runtime.batched import BatchedRuntime
from lct_deploy.runtime.engines import check_verified, choose_engine, this_place
from lct_deploy.runtime.flavours import FlavourName, is_flavour

if TYPE_CHECKING:
    from lct_deploy.runtime.backbone import BackboneRuntime

# name → module, class, extra that installs it
_RUNTIMES = {
    "onnxruntime": ("lct_deploy.runtime.onnxruntime", "OnnxRuntime", "cpu"),
    "tensorrt": ("lct_deploy.runtime.tensorrt", "TensorRtRuntime", "gpu"),
    "tensorrt-rtx": ("lct_deploy.runtime.tensorrt", "TensorRtRuntime", "rtx"),
    "openvino": ("lct_deploy.runtime.openvino", "OpenVinoRuntime", "openvino"),
    "torch": ("lct_deploy.runtime.torch", "TorchRuntime", "export"),
}


def check_known(name: str) -> None:
    """Raise UsageError for the name of a runtime that there is not."""
    if name not in _RUNTIMES:
        raise UsageError(f"unknown runtime {name!r}", hint=f"runtimes are {', '.join(_RUNTIMES)}")


def load_runtime(name: str) -> type[ArtifactRuntime]:
    """The class behind a runtime's name.

    Raises UsageError for an unknown name, RuntimeUnavailableError where it is not installed.
    """
    check_known(name)
    module, class_name, extra = _RUNTIMES[name]
    with _needing(extra, name):
        return getattr(importlib.import_module(module), class_name)


@contextmanager
def _needing(extra: str, name: str) -> Generator[None]:
    """Imports of the runtime `name`, which `extra` installs; raises RuntimeUnavailableError without it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise RuntimeUnavailableError(
            f"the runtime {name} needs the package {error.name}, which is not installed",
            hint=f"pip install 'lct-deploy[{extra}]'",
        ) from error


def open_artifact(
    name: str, path: Path, options: RuntimeOptions, artifact: Artifact | None = None
) -> Runtime:
    """Open a graph, an engine or a checkpoint with the runtime called `name`.

    `artifact` is what a bundle says of the file, without which engines are not opened. Raises
    UsageError for an unknown name, RuntimeUnavailableError where it is not installed.
    """
    return load_runtime(name).open(path, options, artifact)


def open_backbone(
    bundle: BackboneBundle, name: str, options: RuntimeOptions, precision: Precision | None = None
) -> "BackboneRuntime":
    """Open a backbone's graph; raises what `backbone_graph` and `BackboneRuntime.open` raise."""
    graph = backbone_graph(bundle, name, precision)
    with _needing("cpu", name):
        from lct_deploy.runtime.backbone import BackboneRuntime
    return BackboneRuntime.open(bundle.file(graph), options)


def backbone_graph(bundle: BackboneBundle, name: str, precision: Precision | None = None) -> Artifact:
    """What a backbone's bundle holds for the runtime `name`.

    Raises UsageError for another than onnxruntime, BundleError for a precision that there is no graph in.
    """
    check_known(name)
    if name != "onnxruntime":
        raise UsageError(f"{name} does not run backbones", hint="--runtime onnxruntime")
    return bundle.artifact(name, precision)


def open_bundled(
    bundle: Bundle,
    name: str,
    options: RuntimeOptions,
    precision: Precision | None = None,
    *,
    unverified: bool = False,
) -> Runtime:
    """Open what a bundle holds for `name`: an engine, or its graph and what was compiled for some batches.

    `precision` None is the one that the bundle was exported for; only `verify` asks for an engine that
    is `unverified`. Raises BundleError where there is nothing of that kind, or where it does not fit
    this machine.
    """
    if options.provider != "cpu" and name != "onnxruntime":
        raise UsageError(
            f"providers are onnxruntime's: {name} has no {options.provider}", hint="drop --provider"
        )
    if is_flavour(name):
        return _open_engine(bundle, name, options, precision, unverified=unverified)
    if options.provider != "cpu":
        spelled_for = "tensorrt" if options.provider == "tensorrt" else None
        graph = bundle.artifact(name, precision, spelled_for=spelled_for)
        return open_artifact(name, bundle.file(graph), options, graph)
    return _open_on_host(bundle, name, options, precision)


def _open_engine(
    bundle: Bundle,
    name: FlavourName,
    options: RuntimeOptions,
    precision: Precision | None,
    *,
    unverified: bool,
) -> Runtime:
    engine = choose_engine(bundle, name, precision, this_place(name))
    if not unverified:
        check_verified(bundle, engine)
    return open_artifact(name, bundle.file(engine), options, engine)


def _open_on_host(bundle: Bundle, name: str, options: RuntimeOptions, precision: Precision | None) -> Runtime:
    compiled = bundle.compiled(name, precision)
    check_host(bundle, compiled)
    graph = bundle.artifact(name, precision)
    runtime = open_artifact(name, bundle.file(graph), options, graph)
    if not compiled:
        return runtime
    return BatchedRuntime(
        runtime, {a.profiles[0].opt: open_artifact(name, bundle.file(a), options, a) for a in compiled}
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
