"""What each flavour of TensorRT has, knows and builds for: where the two differ is written down here."""

from math import prod

from onnx import ModelProto, ValueInfoProto

from exporters.tensorrt.options import BuildOptions, capability
from lct_deploy.errors import RuntimeUnavailableError, UsageError
from lct_deploy.manifest import Precision, Profile
from lct_deploy.runtime.flavours import Flavour, FlavourName

# Not all of TensorRT's kernels count further than an int32.
_MAX_ELEMENTS = 2**31 - 1

# The first compute capability whose tensor cores know a type; below it the type is emulated or refused.
_SINCE: dict[Precision, int] = {"tf32": 80, "bf16": 80, "fp8": 89}
_OWN_GPU = "NONE", "CURRENT"
# Engines for Turing cost those of all others something: RTX's own default leaves it out, and so does ours.
_NOT_BY_DEFAULT = "sm75", "sm121"


def check_flags(options: BuildOptions, flavour: FlavourName) -> None:
    """Raise UsageError for what the flavour does not have, whether it is installed or not."""
    only_tensorrt = {
        "--timing-cache": options.timing_cache is not None,
        "--version-compatible": options.version_compatible,
        "--hardware-compatible": options.hardware_compatible,
    }
    lacking = [flag for flag, given in only_tensorrt.items() if given] if flavour == "tensorrt-rtx" else []
    if lacking:
        raise UsageError(
            f"TensorRT-RTX has no {', '.join(lacking)}: its engines hold no timed kernels",
            hint="drop it, or --runtime tensorrt on the GPU itself; --gpu names several GPUs to TensorRT-RTX",
        )
    if options.gpus and flavour == "tensorrt":
        raise UsageError(
            "TensorRT builds for the GPU that it runs on: there is no --gpu",
            hint="drop it, or --runtime tensorrt-rtx",
        )


def target_gpus(options: BuildOptions, flavour: Flavour, here: str | None) -> tuple[str, ...]:
    """The GPUs that the engine will be for; `here` is this machine's.

    TensorRT: that one. RTX: those asked for, or this machine's, or else all that it builds for by default
    and that know the precision. Raises UsageError for a GPU that RTX does not know or that does not know
    the precision, RuntimeUnavailableError where TensorRT has none.
    """
    gpus = _rtx_gpus(options, flavour, here) if flavour.is_rtx else (_gpu_here(here),)
    _check_precision(options.precision, gpus)
    return gpus


def rtx_gpus(flavour: Flavour) -> list[str]:
    """The GPUs that this RTX builds for, in their order."""
    members = flavour.module.ComputeCapability.__members__
    return sorted((name.lower() for name in members if name not in _OWN_GPU), key=capability)


def check_size(model: ModelProto, profiles: tuple[Profile, ...]) -> None:
    """Raise UsageError where a tensor of the largest batch has more elements than kernels can count."""
    most = max(profile.max or 1 for profile in profiles)
    sizes = ((_elements_per_image(v), v.name) for v in (*model.graph.input, *model.graph.value_info))
    largest, name = max(sizes)
    if largest * most > _MAX_ELEMENTS:
        raise UsageError(
            f"a batch of {most} is too large: {name} would have {largest * most:.3g} elements, TensorRT's "
            f"kernels count to {_MAX_ELEMENTS}",
            hint=f"--batch up to {_MAX_ELEMENTS // largest}",
        )


def _gpu_here(here: str | None) -> str:
    if here is None:
        raise RuntimeUnavailableError(
            "TensorRT builds on the GPU that the engine is for, and cuda-bindings sees none here",
            hint="--runtime tensorrt-rtx builds without one; nvidia-smi tells what the driver sees",
        )
    return here


def _rtx_gpus(options: BuildOptions, flavour: Flavour, here: str | None) -> tuple[str, ...]:
    known = rtx_gpus(flavour)
    unknown = [gpu for gpu in options.gpus if gpu not in known]
    if unknown:
        raise UsageError(
            f"TensorRT-RTX {flavour.version} does not build for {', '.join(unknown)}",
            hint=f"--gpu with some of {','.join(known)}; for others use --runtime tensorrt there",
        )
    if options.gpus:
        return options.gpus
    return (here,) if here in known else _default_gpus(known, options.precision)


def _default_gpus(known: list[str], precision: Precision) -> tuple[str, ...]:
    least = _SINCE.get(precision, 0)
    return tuple(gpu for gpu in known if gpu not in _NOT_BY_DEFAULT and capability(gpu) >= least)


def _check_precision(precision: Precision, gpus: tuple[str, ...]) -> None:
    least = _SINCE.get(precision, 0)
    unable = [gpu for gpu in gpus if capability(gpu) < least]
    if unable:
        raise UsageError(
            f"{', '.join(unable)} cannot compute in {precision}, which GPUs know since sm{least}",
            hint="--precision fp16, or other GPUs",
        )


def _elements_per_image(value: ValueInfoProto) -> int:
    return prod(dim.dim_value for dim in value.type.tensor_type.shape.dim if dim.dim_value)
