"""The command line: parse, call one function, print. Heavy imports live inside the commands."""

import shlex
import sys
from collections.abc import Generator
from contextlib import closing, contextmanager
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from lct_deploy.bundle import Bundle, open_bundle
from lct_deploy.errors import LctDeployError, ParityError, RuntimeUnavailableError, UsageError
from lct_deploy.host import host_isa
from lct_deploy.manifest import Manifest, Precision
from lct_deploy.report import describe_bundle, describe_parity
from lct_deploy.runtime.flavours import FlavourName, is_flavour
from lct_deploy.validation import validate

if TYPE_CHECKING:
    from lct_deploy.runtime import RuntimeOptions

app = typer.Typer(
    name="lct-deploy",
    help="Trained LCT-ResNet checkpoints to production endpoints, proven equal to PyTorch.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

RuntimeOption = Annotated[str, typer.Option(help="onnxruntime, tensorrt or tensorrt-rtx.")]
ProviderOption = Annotated[
    str | None,
    typer.Option(envvar="LCT_PROVIDER", help="onnxruntime's: cpu, cuda or tensorrt; default: cpu."),
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(help="fp32, tf32, fp16, bf16, int8 or fp8; default: what the bundle was exported for."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout.")]


def main() -> None:
    """Entry point: exit 0 done, 1 failed, 2 wrong use; a user's mistake shows no traceback."""
    try:
        app()
    except LctDeployError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


@app.callback()
def _root() -> None:  # pyright: ignore[reportUnusedFunction]
    pass


@app.command("train")
def train_command(
    data: Annotated[str, typer.Option(help="fashion-mnist, a folder of IDX files, or an ImageFolder tree.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Checkpoint: .safetensors, .pt or .pth.")],
    arch: Annotated[str, typer.Option(help="See `lct-deploy models`.")] = "lct_resnet20",
    groups: Annotated[int | None, typer.Option(help="Attention groups; default by network.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Pixels; default by data or network.")] = None,
    epochs: int = 30,
    batch_size: int = 256,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    schedule: Annotated[str, typer.Option(help="step or cosine.")] = "step",
    step_epochs: Annotated[int, typer.Option(help="Epochs between the ÷10 steps.")] = 30,
    warmup_epochs: int = 0,
    seed: int = 0,
    resume: Annotated[bool, typer.Option(help="Go on from the last finished epoch.")] = False,
) -> None:
    """Train a network and write its checkpoint with all that export needs to know."""
    with _extra("export"):
        from lct_deploy.train.config import TrainConfig
        from lct_deploy.train.run import TrainRequest, train

    config = validate(
        TrainConfig,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        schedule=schedule,
        step_epochs=step_epochs,
        warmup_epochs=warmup_epochs,
        seed=seed,
    )
    request = TrainRequest(data=data, arch=arch, groups=groups, image_size=image_size)
    result = train(request, config, output, resume=resume)
    print(f"{output}: top-1 {result.test_top1:.2f} % after {result.epoch} epochs")


@app.command("export")
def export_command(
    source: Annotated[Path, typer.Argument(help="A checkpoint (.safetensors, .pt, .pth) or an .onnx file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The bundle: a directory to create.")],
    arch: Annotated[str | None, typer.Option(help="Default: inferred from the weights.")] = None,
    groups: Annotated[int | None, typer.Option(help="Attention groups.")] = None,
    epsilon: Annotated[float | None, typer.Option(help="The attention's ε.")] = None,
    stride_placement: Annotated[str | None, typer.Option(help="v1.5 (torchvision) or caffe.")] = None,
    num_classes: int | None = None,
    weights: Annotated[str | None, typer.Option(help="model or ema, where a file holds both.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Height and width that the network sees.")] = None,
    resize: Annotated[int | None, typer.Option(help="Short side before the crop.")] = None,
    crop: Annotated[int | None, typer.Option(help="The same as --image-size.")] = None,
    interpolation: Annotated[str | None, typer.Option(help="bilinear, bicubic, lanczos, …")] = None,
    mean: Annotated[str | None, typer.Option(help="Three numbers for [0, 1], as 0.485,0.456,0.406.")] = None,
    std: Annotated[str | None, typer.Option(help="Three numbers for [0, 1].")] = None,
    labels: Annotated[Path | None, typer.Option(help="One label a line.")] = None,
    images: Annotated[Path | None, typer.Option(help="At least 256 images to measure parity on.")] = None,
    opset: Annotated[int | None, typer.Option(help="Default 20; of an .onnx file: its own.")] = None,
    precision: Annotated[str, typer.Option(help="fp32, fp16, bf16, int8 or fp8.")] = "fp32",
    target: Annotated[
        str | None, typer.Option("--for", help="portable, onnxruntime or tensorrt; default by precision.")
    ] = None,
    calib_data: Annotated[
        str | None, typer.Option(help="int8, fp8: images for the ranges, a directory or fashion-mnist.")
    ] = None,
    calib_images: Annotated[int | None, typer.Option(help="int8, fp8: how many; default up to 512.")] = None,
    calib_method: Annotated[
        str | None, typer.Option(help="int8, fp8: percentile, min-max or entropy.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's name; default: that of the bundle.")] = None,
    model_version: str = "1",
    allow_unfused: Annotated[
        bool, typer.Option(help="Export blocks that cannot be fused as they are.")
    ] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing bundle.")] = False,
    json: JsonOption = False,
) -> None:
    """Turn a checkpoint or an .onnx file into a bundle, proven to give the same answers."""
    with _extra("export"):
        from exporters.export import export
        from exporters.options import CalibrationOptions, ExportOptions
        from lct_deploy.checkpoint import LoadOptions

    given = {"data": calib_data, "images": calib_images, "method": calib_method}
    calibration = {name: value for name, value in given.items() if value is not None}
    options = validate(
        ExportOptions,
        load=validate(
            LoadOptions,
            arch=arch,
            num_classes=num_classes,
            groups=groups,
            epsilon=epsilon,
            stride_placement=stride_placement,
            weights=weights,
        ),
        image_size=image_size,
        resize=resize,
        crop=crop,
        interpolation=interpolation,
        mean=_numbers(mean),
        std=_numbers(std),
        labels=labels,
        images=images,
        opset=opset,
        precision=precision,
        target=target,
        calibration=validate(CalibrationOptions, **calibration),
        name=name,
        version=model_version,
        allow_unfused=allow_unfused,
        overwrite=overwrite,
    )
    manifest = export(source, output, options, command=_command(), announce=_announce)
    print(
        manifest.model_dump_json(indent=2)
        if json
        else f"{output}: bundle of {manifest.arch}, proven against {manifest.parity[0].reference}"
    )


@app.command("models")
def models_command(json: JsonOption = False) -> None:
    """List the architectures with parameters and multiply-adds (the paper's Table 1)."""
    from lct_deploy.cost import cost_table

    rows = cost_table()
    if json:
        print(dumps([asdict(row) for row in rows], indent=2))
        return
    print(f"{'architecture':<20} {'image':>5} {'parameters':>12} {'multiply-adds':>14}")
    for row in rows:
        cost = f"{row.parameters / 1e6:>11.2f}M {row.multiply_adds / 1e9:>13.3f}G"
        print(f"{row.arch:<20} {row.image_size:>5} {cost}")


@app.command("compile")
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
    given: dict[str, object] = {
        "gpu": gpu,
        "timing_cache": timing_cache,
        "version_compatible": version_compatible,
        "hardware_compatible": hardware_compatible,
        "opt_level": opt_level,
        "attention": attention,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    if runtime == "onnxruntime":
        if chosen:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in chosen)
            raise UsageError(
                f"{flags}: not of the runtime onnxruntime", hint="--runtime tensorrt or tensorrt-rtx"
            )
        manifest, done = _compile_for_host(bundle, "1" if batch is None else batch, precision, images)
    elif is_flavour(runtime):
        manifest, done = _compile_engine(bundle, runtime, batch, precision, images, chosen)
    else:
        raise UsageError(
            f"nothing can be compiled for the runtime {runtime!r}",
            hint="--runtime onnxruntime, tensorrt or tensorrt-rtx",
        )
    print(manifest.model_dump_json(indent=2) if json else f"{bundle}: {done}")


def _compile_for_host(
    bundle: Path, batch: str, precision: str | None, images: Path | None
) -> tuple[Manifest, str]:
    with _extra("export"):
        from exporters.host.compile import CompileOptions, compile_for_host

    options = CompileOptions(batches=_batches(batch), precision=_precision(precision), images=images)
    manifest = compile_for_host(open_bundle(bundle), options, command=_command(), announce=_announce)
    return manifest, f"batches {', '.join(map(str, options.batches))} compiled for {host_isa()}"


def _compile_engine(
    bundle: Path,
    runtime: FlavourName,
    batch: str | None,
    precision: str | None,
    images: Path | None,
    chosen: dict[str, object],
) -> tuple[Manifest, str]:
    with _extra("export"):
        from exporters.tensorrt.compile import compile_engine
        from exporters.tensorrt.options import BuildOptions, parse_gpus, parse_profiles

    wanted = _precision(precision)
    if batch is not None:
        chosen["profiles"] = parse_profiles(batch)
    if "gpu" in chosen:
        chosen["gpus"] = parse_gpus(str(chosen.pop("gpu")))
    opened = open_bundle(bundle)
    options = validate(BuildOptions, precision=wanted or opened.manifest.precision, **chosen)
    manifest = compile_engine(opened, runtime, options, images=images, command=_command(), announce=_announce)
    return manifest, f"compiled for {runtime} in {options.precision}"


@app.command("verify")
def verify_command(
    bundle: Path,
    checkpoint: Annotated[Path | None, typer.Option(help="Compare with PyTorch on this checkpoint.")] = None,
    images: Annotated[
        Path | None, typer.Option(help="At least 256 images to measure on; with --bisect 16 of them.")
    ] = None,
    runtime: RuntimeOption = "onnxruntime",
    provider: ProviderOption = None,
    precision: PrecisionOption = None,
    bisect: Annotated[
        bool,
        typer.Option("--bisect", help="Name the layer whose precision costs a low-precision graph most."),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Compare a bundle with its checkpoint or, without one, with its golden logits.

    An engine that agrees with the golden logits on this GPU may be served from then on.
    """
    opened, wanted = open_bundle(bundle), _precision(precision)
    if provider not in (None, "cpu") and (bisect or checkpoint is not None):
        raise UsageError(
            "only the golden logits are compared on other providers than cpu",
            hint="drop --provider (LCT_PROVIDER), or --checkpoint and --bisect",
        )
    if bisect:
        if checkpoint is not None:
            raise UsageError("--bisect compares with the bundle's own fp32 graph", hint="drop --checkpoint")
        _bisect(opened, runtime, wanted, images, json=json)
        return
    if checkpoint is None:
        _verify_golden(opened, runtime, provider, wanted, json=json)
        return
    with _extra("export"):
        from exporters.verify import verify_bundle

    reports = verify_bundle(opened, checkpoint, images, runtime, wanted)
    if json:
        print(dumps([report.model_dump(mode="json") for report in reports], indent=2))
    else:
        print("\n".join(map(describe_parity, reports)))
    if not all(report.passed for report in reports):
        raise ParityError(f"{bundle} does not agree with {checkpoint}")


def _bisect(
    bundle: Bundle, runtime: str, precision: Precision | None, images: Path | None, *, json: bool
) -> None:
    with _extra("export"):
        from exporters.bisect import blame_bundle, describe_blame

    found = blame_bundle(bundle, runtime, precision, images)
    print(found.model_dump_json(indent=2) if json else describe_blame(found))


def _verify_golden(
    bundle: Bundle, runtime: str, provider: str | None, precision: Precision | None, *, json: bool
) -> None:
    from lct_deploy.golden import verify_golden

    parity = verify_golden(bundle, runtime, _runtime_options(provider), precision, command=_command())
    print(
        parity.model_dump_json(indent=2)
        if json
        else f"{bundle.path}: golden logits agree on {runtime}, max |Δlogit| {parity.max_abs_error:.2e}"
    )


@app.command("predict")
def predict_command(
    bundle: Path,
    images: Annotated[list[Path], typer.Argument(help="JPEG, PNG or WebP files.")],
    top_k: Annotated[int, typer.Option(min=1)] = 5,
    runtime: RuntimeOption = "onnxruntime",
    provider: ProviderOption = None,
    precision: PrecisionOption = None,
    json: JsonOption = False,
) -> None:
    """Classify image files."""
    from lct_deploy.predictions import predict_files
    from lct_deploy.runtime import open_bundled

    opened, options = open_bundle(bundle), _runtime_options(provider)
    with closing(open_bundled(opened, runtime, options, _precision(precision))) as engine:
        report = predict_files(opened, engine, images, k=top_k)
    if json:
        print(report.model_dump_json(indent=2))
        return
    for image in report.images:
        print(image.path)
        for prediction in image.predictions:
            print(f"  {prediction.probability:7.2%}  {prediction.label}")


@app.command("inspect")
def inspect_command(bundle: Path, json: JsonOption = False) -> None:
    """Show a bundle's manifest, fusion certificate and parity, after checking its files."""
    manifest = open_bundle(bundle).manifest
    print(manifest.model_dump_json(indent=2) if json else describe_bundle(manifest))


@app.command("serve")
def serve_command(
    bundles: Annotated[list[Path], typer.Argument(help="One or more bundles.")],
    host: Annotated[str | None, typer.Option(help="Default 127.0.0.1: this machine only.")] = None,
    port: Annotated[int | None, typer.Option(help="Default 8000; 0 takes a free one.")] = None,
    runtime: Annotated[
        str | None, typer.Option(help="onnxruntime (default), tensorrt, tensorrt-rtx.")
    ] = None,
    provider: ProviderOption = None,
    precision: PrecisionOption = None,
    streams: Annotated[int | None, typer.Option(help="TensorRT: calls that run side by side.")] = None,
    cuda_graphs: Annotated[bool | None, typer.Option(help="TensorRT: on, unless told otherwise.")] = None,
    intra_op_threads: Annotated[int | None, typer.Option(help="Threads of one inference.")] = None,
    decode_threads: Annotated[int | None, typer.Option(help="Threads that decode images.")] = None,
    log_level: Annotated[str | None, typer.Option(help="critical, error, warning, info or debug.")] = None,
    log_format: Annotated[str | None, typer.Option(help="json, or text as on a terminal.")] = None,
) -> None:
    """Serve bundles over HTTP; every option can also be set as LCT_… in the environment."""
    with _extra("serve"):
        from server.run import serve
        from server.settings import ServerSettings

    given = {
        "host": host,
        "port": port,
        "runtime": runtime,
        "provider": provider,
        "precision": _precision(precision),
        "streams": streams,
        "cuda_graphs": cuda_graphs,
        "intra_op_threads": intra_op_threads,
        "decode_threads": decode_threads,
        "log_level": log_level,
        "log_format": log_format,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    serve(validate(ServerSettings, bundles=tuple(bundles), **chosen))


@app.command("demo")
def demo_command() -> None:
    """Run the whole pipeline on the shipped checkpoint."""
    from rich.console import Console

    from lct_deploy.demo import run_demo

    run_demo(Console(highlight=False, soft_wrap=True))


def _announce(message: str) -> None:
    print(message, file=sys.stderr)


def _command() -> str:
    return shlex.join(["lct-deploy", *sys.argv[1:]])


def _batches(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"{text!r} is not a list of batch sizes such as 1,8") from error


def _precision(name: str | None) -> Precision | None:
    if name is not None and name not in get_args(Precision):
        known = ", ".join(get_args(Precision))
        raise UsageError(f"unknown precision {name!r}", hint=f"precisions are {known}")
    return cast("Precision | None", name)


def _runtime_options(provider: str | None) -> "RuntimeOptions":
    from lct_deploy.runtime.base import ProviderName, RuntimeOptions

    if provider is None:
        return RuntimeOptions()
    if provider not in get_args(ProviderName):
        known = ", ".join(get_args(ProviderName))
        raise UsageError(f"unknown provider {provider!r}", hint=f"providers are {known}")
    return RuntimeOptions(provider=cast("ProviderName", provider))


def _numbers(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"{text!r} is not three numbers such as 0.485,0.456,0.406") from error


@contextmanager
def _extra(name: str) -> Generator[None]:
    """Imports that the extra called `name` brings; raises RuntimeUnavailableError without it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise RuntimeUnavailableError(
            f"this command needs the package {error.name}, which is not installed",
            hint=f"pip install 'lct-deploy[{name}]'",
        ) from error
