"""`lct-deploy export`."""

from pathlib import Path
from typing import Annotated

import typer

from lct_deploy.commands.options import JsonOption, given, parse_numbers
from lct_deploy.commands.shared import announce, command_line, extra
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
        str | None,
        typer.Option("--for", help="portable, onnxruntime, openvino or tensorrt; default by precision."),
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
    with extra("export"):
        from exporters.export import export
        from exporters.options import CalibrationOptions, ExportOptions
        from lct_deploy.checkpoint import LoadOptions

    calibration = given(data=calib_data, images=calib_images, method=calib_method)
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
        mean=parse_numbers(mean),
        std=parse_numbers(std),
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
    manifest = export(source, output, options, command=command_line(), announce=announce)
    print(
        manifest.model_dump_json(indent=2)
        if json
        else f"{output}: bundle of {manifest.arch}, proven against {manifest.parity[0].reference}"
    )
