"""`lct-deploy evaluate`."""

import dataclasses
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lct_deploy.bundle import open_bundle
from lct_deploy.commands.options import (
    DataOption,
    JsonOption,
    PrecisionOption,
    ProviderOption,
    UnreadableOption,
    parse_precision,
    parse_runtime_options,
)
from lct_deploy.commands.shared import announce, extra, print_wide
from lct_deploy.errors import UsageError
from lct_deploy.labels import read_labels

if TYPE_CHECKING:
    from lct_deploy.evaluation.subject import Subject


def evaluate_command(
    source: Annotated[Path, typer.Argument(help="A bundle, or a checkpoint to run in PyTorch.")],
    data: DataOption,
    labels: Annotated[
        Path | None,
        typer.Option(help="The network's classes as the data name them, one a line; default: its own."),
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(help="As predict has them; default: onnxruntime of a bundle, torch of a checkpoint."),
    ] = None,
    provider: ProviderOption = None,
    precision: PrecisionOption = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Default: the largest that is compiled, or 32.")
    ] = None,
    max_unreadable: UnreadableOption = 0,
    csv: Annotated[Path | None, typer.Option(help="Also write a row an image.")] = None,
    json: JsonOption = False,
) -> None:
    """Measure accuracy on labelled images: top-1, top-5, by class, confusion and calibration."""
    from lct_deploy.evaluation.run import EvaluateOptions, evaluate
    from lct_deploy.evaluation.table import describe_evaluation

    subject = _open(source, runtime, provider, precision)
    with closing(subject.runtime):
        if labels is not None:
            subject = dataclasses.replace(subject, labels=read_labels(labels, len(subject.labels)))
        options = EvaluateOptions(batch=batch, max_unreadable=max_unreadable, rows=csv)
        evaluation = evaluate(subject, data, options)
    if json:
        print(evaluation.model_dump_json(indent=2))
    else:
        print_wide(describe_evaluation(evaluation))


def _open(source: Path, runtime: str | None, provider: str | None, precision: str | None) -> "Subject":
    wanted, options = parse_precision(precision), parse_runtime_options(provider)
    if not source.is_file():
        from lct_deploy.evaluation.subject import open_bundle_subject

        return open_bundle_subject(open_bundle(source), runtime or "onnxruntime", options, wanted)
    if (runtime or "torch", wanted or "fp32", options.provider) != ("torch", "fp32", "cpu"):
        raise UsageError(
            f"{source}: a checkpoint runs in PyTorch, in fp32 on the CPU",
            hint=f"lct-deploy export {source} -o BUNDLE makes what other runtimes and precisions run",
        )
    with extra("export"):
        from lct_deploy.checkpoint import load_checkpoint
        from lct_deploy.evaluation.checkpoint import assumptions, checkpoint_subject

    loaded = load_checkpoint(source)
    for note in assumptions(loaded):
        announce(f"note: {note}")
    return checkpoint_subject(source, loaded, options)
