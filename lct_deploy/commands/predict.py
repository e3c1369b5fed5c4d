"""`lct-deploy predict`."""

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from lct_deploy.bundle import open_bundle
from lct_deploy.commands.options import (
    JsonOption,
    PrecisionOption,
    ProviderOption,
    RuntimeOption,
    parse_precision,
    parse_runtime_options,
)


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

    opened, options = open_bundle(bundle), parse_runtime_options(provider)
    with closing(open_bundled(opened, runtime, options, parse_precision(precision))) as engine:
        report = predict_files(opened, engine, images, k=top_k)
    if json:
        print(report.model_dump_json(indent=2))
        return
    for image in report.images:
        print(image.path)
        for prediction in image.predictions:
            print(f"  {prediction.probability:7.2%}  {prediction.label}")
