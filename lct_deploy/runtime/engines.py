"""Which of a bundle's engines runs here, and why the others do not."""

import re
import shlex
from dataclasses import dataclass

from lct_deploy.bundle import Bundle
from lct_deploy.errors import BundleError, RuntimeUnavailableError
from lct_deploy.manifest import Artifact, Precision
from lct_deploy.rebuild import compile_command
from lct_deploy.runtime.flavours import FlavourName, gpu_capability, load_flavour

_ANY_VERSION, _ANY_GPU = "version-compatible", "hardware-compatible"
_AMPERE = 80  # the least compute capability that hardware-compatible engines run on


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
            hint=compile_command(bundle.path, last, gpu=place.gpu),
        )
    return fitting[-1]


def misfits(engine: Artifact, place: Place) -> list[str]:
    """What an engine was compiled for and `place` is not."""
    wrong: list[str] = []
    version = engine.versions.get(engine.runtime)
    if version is None or not _runs_version(engine, version, place.version):
        wrong.append(f"{engine.runtime} {version}, here it is {place.version}")
    if not _runs_gpu(engine, place.gpu):
        wrong.append(f"GPUs of {engine.gpu}, this one is {place.gpu}")
    return wrong


def _runs_version(engine: Artifact, built: str, here: str) -> bool:
    """A version-compatible engine runs on its own version and all later ones of the same major."""
    if not is_version_compatible(engine):
        return built == here
    old, new = (tuple(map(int, re.findall(r"\d+", version))) for version in (built, here))
    return old[0] == new[0] and old <= new


def _runs_gpu(engine: Artifact, here: str) -> bool:
    if _compatible(engine, _ANY_GPU):
        return int(here.removeprefix("sm")) >= _AMPERE
    return here in (engine.gpu or "").split(",")


def is_version_compatible(engine: Artifact) -> bool:
    """Whether an engine runs on later versions of its TensorRT."""
    return _compatible(engine, _ANY_VERSION)


def _compatible(engine: Artifact, flag: str) -> bool:
    return engine.build is not None and flag.replace("-", " ") in engine.build.options


def check_verified(bundle: Bundle, engine: Artifact) -> None:
    """Raise BundleError for an engine that has not been compared with the golden logits on its GPU."""
    if not engine.verified:
        raise BundleError(
            f"{bundle.path}: {engine.path} has not been verified on this GPU",
            hint=f"lct-deploy verify {shlex.quote(str(bundle.path))} --runtime {engine.runtime} "
            f"--precision {engine.precision}",
        )
