"""`lct-deploy export`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lct_deploy.commands.options import JsonOption, given, parse_features, parse_numbers
from lct_deploy.commands.shared import announce, command_line, extra
from lct_deploy.errors import UsageError
from lct_deploy.manifest import BackboneManifest, Manifest
from lct_deploy.validation import validate


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
    resize: Annotated[
        int | None, typer.Option(help="Short side before the crop; with --features of parity's images.")
    ] = None,
    crop: Annotated[int | None, typer.Option(help="The same as --image-size.")] = None,
    interpolation: Annotated[str | None, typer.Option(help="bilinear, bicubic, lanczos, …")] = None,
    mean: Annotated[str | None, typer.Option(help="Three numbers for [0, 1], as 0.485,0.456,0.406.")] = None,
    std: Annotated[str | None, typer.Option(help="Three numbers for [0, 1].")] = None,
    labels: Annotated[Path | None, typer.Option(help="One label a line.")] = None,
    images: Annotated[Path | None, typer.Option(help="At least 256 images to measure parity on.")] = None,
    opset: Annotated[int | None, typer.Option(help="Default 20; of an .onnx file: its own.")] = None,
    precision: Annotated[str, typer.Option(help="fp32, fp16, bf16, int8 or fp8.")] = "fp32",
    target: Annotated[
        str | None,
        typer.Option("--for", help="portable, onnxruntime, openvino or tensorrt; default by precision."),
    ] = None,
    calib_data: Annotated[
        str | None, typer.Option(help="int8, fp8: images for the ranges, a directory or fashion-mnist.")
    ] = None,
    calib_images: Annotated[int | None, typer.Option(help="int8, fp8: how many; default up to 512.")] = None,
    calib_method: Annotated[
        str | None, typer.Option(help="int8, fp8: image-percentile, percentile, entropy or min-max.")
    ] = None,
    gates: Annotated[
        bool, typer.Option("--gates", help="Add the graph that `analyze` reads contexts and gates from.")
    ] = False,
    features: Annotated[
        str | None,
        typer.Option(help="A backbone for detectors: these maps instead of logits, as c2,c3,c4,c5."),
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
    load = given(
        arch=arch, groups=groups, epsilon=epsilon, stride_placement=stride_placement, weights=weights
    )
    common = given(
        mean=parse_numbers(mean),
        std=parse_numbers(std),
        images=images,
        opset=opset,
        name=name,
        version=model_version,
        allow_unfused=allow_unfused,
        overwrite=overwrite,
    )
    calibration = given(data=calib_data, images=calib_images, method=calib_method)
    if features is not None:
        for_classifiers = given(
            num_classes=num_classes,
            labels=labels,
            image_size=image_size,
            crop=crop,
            interpolation=interpolation,
            gates=gates or None,
            **{f"calib_{name}": value for name, value in calibration.items()},
        )
        _check_for_backbone(for_classifiers, precision, target)
        _export_backbone(source, output, features, resize, load, common, json=json)
        return
    with extra("export"):
        from exporters.export import export
        from exporters.options import CalibrationOptions, ExportOptions
        from lct_deploy.checkpoint import LoadOptions

    options = validate(
        ExportOptions,
        load=validate(LoadOptions, num_classes=num_classes, **load),
        image_size=image_size,
        resize=resize,
        crop=crop,
        interpolation=interpolation,
        labels=labels,
        precision=precision,
        target=target,
        calibration=validate(CalibrationOptions, **calibration),
        gates=gates,
        **common,
    )
    manifest = export(source, output, options, command=command_line(), announce=announce)
    _print_made(output, manifest, manifest.arch, json=json)


def _check_for_backbone(given_flags: dict[str, Any], precision: str, target: str | None) -> None:
    """Raise UsageError for what a backbone does not have: classes, one size, other graphs than fp32."""
    if given_flags:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given_flags)
        raise UsageError(
            f"{flags}: of classifiers; a backbone has no classes and takes images of any size",
            hint=f"drop {flags}; --resize is the short side of the images that parity is measured on",
        )
    if precision != "fp32":
        raise UsageError(
            f"there is no {precision} backbone: parity's limits for it are those of a classifier's top-1",
            hint="--precision fp32",
        )
    if target not in (None, "portable"):
        raise UsageError(
            f"there is no backbone for {target}: its spelling needs images of one size",
            hint="--for portable; it runs wherever ONNX does",
        )


def _export_backbone(
    source: Path,
    output: Path,
    features: str,
    resize: int | None,
    load: dict[str, Any],
    common: dict[str, Any],
    *,
    json: bool,
) -> None:
    with extra("export"):
        from exporters.backbone.export import export_backbone
        from exporters.backbone.options import BackboneOptions
        from lct_deploy.checkpoint import LoadOptions

    options = validate(
        BackboneOptions,
        load=validate(LoadOptions, **load),
        features=parse_features(features),
        **given(resize=resize),
        **common,
    )
    manifest = export_backbone(source, output, options, command=command_line(), announce=announce)
    _print_made(output, manifest, f"the backbone of {manifest.arch}", json=json)


def _print_made(output: Path, manifest: Manifest | BackboneManifest, what: str, *, json: bool) -> None:
    print(
        manifest.model_dump_json(indent=2)
        if json
        else f"{output}: bundle of {what}, proven against {manifest.parity[0].reference}"
    )
