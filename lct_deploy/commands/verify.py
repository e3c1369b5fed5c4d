"""`lct-deploy verify`: with the checkpoint, with the golden answers, or layer by layer."""

from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from lct_deploy.bundle import BackboneBundle, Bundle, open_any_bundle
from lct_deploy.commands.options import (
    JsonOption,
    PrecisionOption,
    ProviderOption,
    RuntimeOption,
    parse_precision,
    parse_runtime_options,
)
from lct_deploy.commands.shared import command_line, extra
from lct_deploy.errors import ParityError, UsageError
from lct_deploy.manifest import BackboneReport, ParityReport, Precision
from lct_deploy.report import describe_map, describe_parity


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
    opened, wanted = open_any_bundle(bundle), parse_precision(precision)
    if provider not in (None, "cpu") and (bisect or checkpoint is not None):
        raise UsageError(
            "only the golden answers are compared on other providers than cpu",
            hint="drop --provider (LCT_PROVIDER), or --checkpoint and --bisect",
        )
    if isinstance(opened, BackboneBundle):
        if bisect:
            raise UsageError(f"{bundle}: a backbone is in fp32 alone, there is nothing to bisect")
        _verify_backbone(opened, checkpoint, images, runtime, provider, wanted, json=json)
        return
    if bisect:
        if checkpoint is not None:
            raise UsageError("--bisect compares with the bundle's own fp32 graph", hint="drop --checkpoint")
        _bisect(opened, runtime, wanted, images, json=json)
        return
    if checkpoint is None:
        _verify_golden(opened, runtime, provider, wanted, json=json)
        return
    with extra("export"):
        from exporters.verify import verify_bundle

    reports = verify_bundle(opened, checkpoint, images, runtime, wanted)
    _print_reports(reports, bundle, checkpoint, json=json)


def _print_reports(
    reports: Sequence[ParityReport] | Sequence[BackboneReport], bundle: Path, checkpoint: Path, *, json: bool
) -> None:
    if json:
        print(dumps([report.model_dump(mode="json") for report in reports], indent=2))
    else:
        print("\n".join(map(describe_parity, reports)))
    if not all(report.passed for report in reports):
        raise ParityError(f"{bundle} does not agree with {checkpoint}")


def _verify_backbone(
    bundle: BackboneBundle,
    checkpoint: Path | None,
    images: Path | None,
    runtime: str,
    provider: str | None,
    precision: Precision | None,
    *,
    json: bool,
) -> None:
    if checkpoint is None:
        from lct_deploy.backbone_golden import verify_backbone_golden

        maps = verify_backbone_golden(bundle, runtime, parse_runtime_options(provider), precision)
        if json:
            print(dumps([parity.model_dump(mode="json") for parity in maps], indent=2))
        else:
            print("\n".join([f"{bundle.path}: golden maps agree on {runtime}", *map(describe_map, maps)]))
        return
    with extra("export"):
        from exporters.backbone.verify import verify_backbone_bundle

    report = verify_backbone_bundle(bundle, checkpoint, images, runtime, precision)
    _print_reports([report], bundle.path, checkpoint, json=json)


def _bisect(
    bundle: Bundle, runtime: str, precision: Precision | None, images: Path | None, *, json: bool
) -> None:
    with extra("export"):
        from exporters.bisect import blame_bundle, describe_blame

    found = blame_bundle(bundle, runtime, precision, images)
    print(found.model_dump_json(indent=2) if json else describe_blame(found))


def _verify_golden(
    bundle: Bundle, runtime: str, provider: str | None, precision: Precision | None, *, json: bool
) -> None:
    from lct_deploy.golden import verify_golden

    parity = verify_golden(
        bundle, runtime, parse_runtime_options(provider), precision, command=command_line()
    )
    print(
        parity.model_dump_json(indent=2)
        if json
        else f"{bundle.path}: golden logits agree on {runtime}, max |Δlogit| {parity.max_abs_error:.2e}"
    )
