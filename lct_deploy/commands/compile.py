"""`lct-deploy compile`: for this machine's processor, or for a GPU."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from lct_deploy.bundle import open_bundle
from lct_deploy.commands.options import JsonOption, PrecisionOption, given, parse_counts, parse_precision
from lct_deploy.commands.shared import announce, command_line, extra
from lct_deploy.errors import UsageError
from lct_deploy.host import host_isa
from lct_deploy.manifest import Manifest
from lct_deploy.runtime.flavours import FlavourName, is_flavour
from lct_deploy.validation import validate


def compile_command(
    bundle: Path,
    runtime: Annotated[str, typer.Option(help="onnxruntime, tensorrt or tensorrt-rtx.")],
    batch: Annotated[
        str | None,
        typer.Option(help="onnxruntime: batch sizes, as 1,8. TensorRT: MIN:OPT:MAX, or several with commas."),
    ] = None,
    precision: PrecisionOption = None,
    images: Annotated[Path | None, typer.Option(help="At least 256 images to measure parity on.")] = None,
    gpu: Annotated[str | None, typer.Option(help="tensorrt-rtx: GPUs to build for, as sm89,sm120.")] = None,
    timing_cache: Annotated[
        Path | None, typer.Option(help="tensorrt: a file that keeps kernels' times from build to build.")
    ] = None,
    version_compatible: Annotated[
        bool | None,
        typer.Option("--version-compatible", help="tensorrt: an engine for later versions too."),
    ] = None,
    hardware_compatible: Annotated[
        bool | None,
        typer.Option("--hardware-compatible", help="tensorrt: an engine for all GPUs since Ampere."),
    ] = None,
    opt_level: Annotated[
        int | None, typer.Option(help="TensorRT: 0 to 5, how long to look for faster kernels; default 3.")
    ] = None,
    attention: Annotated[
        str | None, typer.Option(help="TensorRT: native (default) or plugin, which is our fused kernel.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Compile a bundle: its graph laid out for this machine, or a TensorRT engine for a GPU."""
    chosen = given(
        gpu=gpu,
        timing_cache=timing_cache,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        opt_level=opt_level,
        attention=attention,
    )
    if runtime == "onnxruntime":
        if chosen:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in chosen)
            raise UsageError(
                f"{flags}: not of the runtime onnxruntime", hint="--runtime tensorrt or tensorrt-rtx"
            )
        manifest, done = _compile_for_host(bundle, "1" if batch is None else batch, precision, images)
    elif is_flavour(runtime):
        manifest, done = _compile_engine(bundle, runtime, batch, precision, images, chosen)
    elif runtime == "openvino":
        raise UsageError(
            "openvino compiles a graph when it opens it, nothing is compiled before",
            hint=f"lct-deploy export CHECKPOINT -o {shlex.quote(str(bundle))} --for openvino --overwrite",
        )
    else:
        raise UsageError(
            f"nothing can be compiled for the runtime {runtime!r}",
            hint="--runtime onnxruntime, tensorrt or tensorrt-rtx",
        )
    print(manifest.model_dump_json(indent=2) if json else f"{bundle}: {done}")


def _compile_for_host(
    bundle: Path, batch: str, precision: str | None, images: Path | None
) -> tuple[Manifest, str]:
    with extra("export"):
        from exporters.host.compile import CompileOptions, compile_for_host

    options = CompileOptions(
        batches=parse_counts(batch, "batch sizes"), precision=parse_precision(precision), images=images
    )
    manifest = compile_for_host(
        open_bundle(bundle, compiled=False), options, command=command_line(), announce=announce
    )
    return manifest, f"batches {', '.join(map(str, options.batches))} compiled for {host_isa()}"


def _compile_engine(
    bundle: Path,
    runtime: FlavourName,
    batch: str | None,
    precision: str | None,
    images: Path | None,
    chosen: dict[str, Any],
) -> tuple[Manifest, str]:
    with extra("export"):
        from exporters.tensorrt.compile import compile_engine
        from exporters.tensorrt.options import BuildOptions, parse_gpus, parse_profiles

    wanted = parse_precision(precision)
    if batch is not None:
        chosen["profiles"] = parse_profiles(batch)
    if "gpu" in chosen:
        chosen["gpus"] = parse_gpus(str(chosen.pop("gpu")))
    opened = open_bundle(bundle, compiled=False)
    options = validate(BuildOptions, precision=wanted or opened.manifest.precision, **chosen)
    manifest = compile_engine(
        opened, runtime, options, images=images, command=command_line(), announce=announce
    )
    return manifest, f"compiled for {runtime} in {options.precision}"
