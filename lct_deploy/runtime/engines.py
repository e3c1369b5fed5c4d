"""Which of a bundle's engines runs here, and why the others do not."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from lct_deploy.bundle import Bundle
from lct_deploy.errors import BundleError, RuntimeUnavailableError
from lct_deploy.manifest import Artifact, Precision, Profile
from lct_deploy.runtime.flavours import FlavourName, gpu_capability, load_flavour


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an engine is to run: a version of its TensorRT, and a GPU's compute capability such as `sm90`."""

    version: str
    gpu: str


def this_place(name: FlavourName) -> Place:
    """The machine at hand; raises RuntimeUnavailableError without that TensorRT, or without a GPU."""
    flavour = load_flavour(name)
    from lct_deploy.runtime import cuda  # cuda-bindings, which only GPU runtimes need

    device = cuda.device_name()
    gpu = gpu_capability()
    if gpu is None:
        raise RuntimeUnavailableError(f"{device} does not tell its compute capability", hint="nvidia-smi")
    return Place(version=flavour.version, gpu=gpu)


def choose_engine(bundle: Bundle, name: FlavourName, precision: Precision | None, place: Place) -> Artifact:
    """The engine that was compiled last of those that fit; `precision` None is the bundle's own.

    Raises BundleError, with the command that makes one, where there is none.
    """
    wanted = precision or bundle.manifest.precision
    engines = [a for a in bundle.manifest.artifacts if (a.runtime, a.kind) == (name, "compiled")]
    candidates = [a for a in engines if a.precision == wanted]
    if not candidates:
        held = ", ".join(sorted({a.precision for a in engines}))
        raise BundleError(
            f"{bundle.path}: holds no {wanted} engine for {name}" + (f"; it has {held}" if held else ""),
            hint=f"lct-deploy compile {shlex.quote(str(bundle.path))} --runtime {name} --precision {wanted}",
        )
    fitting = [a for a in candidates if not misfits(a, place)]
    if not fitting:
        last = candidates[-1]
        raise BundleError(
            f"{bundle.path}: {last.path} was compiled for {'; and for '.join(misfits(last, place))}",
            hint=rebuild_command(bundle.path, last, place),
        )
    return fitting[-1]


def misfits(engine: Artifact, place: Place) -> list[str]:
    """What an engine was compiled for and `place` is not."""
    wrong: list[str] = []
    version = engine.versions.get(engine.runtime)
    if version != place.version:
        wrong.append(f"{engine.runtime} {version}, here it is {place.version}")
    if place.gpu not in (engine.gpu or "").split(","):
        wrong.append(f"GPUs of {engine.gpu}, this one is {place.gpu}")
    return wrong


def check_verified(bundle: Bundle, engine: Artifact) -> None:
    """Raise BundleError for an engine that has not been compared with the golden logits on its GPU."""
    if not engine.verified:
        raise BundleError(
            f"{bundle.path}: {engine.path} has not been verified on this GPU",
            hint=f"lct-deploy verify {shlex.quote(str(bundle.path))} --runtime {engine.runtime} "
            f"--precision {engine.precision}",
        )


def rebuild_command(bundle: Path, engine: Artifact, place: Place | None = None) -> str:
    """What makes this engine again, for the GPU of `place` where RTX can be told one."""
    command = ["lct-deploy", "compile", str(bundle), "--runtime", engine.runtime]
    command += ["--precision", engine.precision]
    for profile in engine.profiles:
        command += ["--batch", _batch(profile)]
    if engine.build is not None and engine.build.attention == "plugin":
        command += ["--attention", "plugin"]
    if engine.runtime == "tensorrt-rtx":
        command += ["--gpu", place.gpu if place else engine.gpu or ""]
    return shlex.join(command)


def _batch(profile: Profile) -> str:
    return f"{profile.min}:{profile.opt}:{profile.max}"
