"""`lct-deploy analyze`."""

import shlex
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lct_deploy.bundle import open_bundle
from lct_deploy.commands.options import DataOption, JsonOption, UnreadableOption
from lct_deploy.commands.shared import announce, extra, print_wide
from lct_deploy.errors import BundleError

if TYPE_CHECKING:
    from lct_deploy.analysis.run import Model


def analyze_command(
    sources: Annotated[
        list[Path], typer.Argument(help="Checkpoints, or bundles exported with --gates, side by side.")
    ],
    data: DataOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="A directory to create.")],
    block: Annotated[
        list[str] | None,
        typer.Option(help="To draw, as layer3.2; may be repeated. Default: the first of each stage."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images at once.")] = 32,
    max_unreadable: UnreadableOption = 0,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing directory.")] = False,
    json: JsonOption = False,
) -> None:
    """Draw the paper's figures 1, 3 and 4: global context and attention, and how they go together."""
    with extra("plot"):
        from lct_deploy.analysis.figures import draw_all
    from lct_deploy.analysis.run import AnalyzeOptions, analyze
    from lct_deploy.analysis.table import describe_summary

    options = AnalyzeOptions(
        blocks=tuple(block or ()), batch=batch, max_unreadable=max_unreadable, overwrite=overwrite
    )
    with ExitStack() as opened:
        models = [_open(path, name, opened) for path, name in zip(sources, _names(sources), strict=True)]
        summary = analyze(models, data, output, options, draw=draw_all)
    if json:
        print(summary.model_dump_json(indent=2))
    else:
        print_wide(describe_summary(summary))
        announce(f"{output}: plots, arrays.npz and summary.json")


def _names(sources: Sequence[Path]) -> list[str]:
    """What plots call each: its file's or directory's name, numbered where several have it."""
    stems = [path.stem if path.is_file() else path.resolve().name for path in sources]
    counts, seen = Counter(stems), Counter[str]()
    names: list[str] = []
    for stem in stems:
        seen[stem] += 1
        names.append(stem if counts[stem] == 1 else f"{stem}-{seen[stem]}")
    return names


def _open(source: Path, name: str, opened: ExitStack) -> "Model":
    return _open_checkpoint(source, name, opened) if source.is_file() else _open_bundle(source, name, opened)


def _open_bundle(source: Path, name: str, opened: ExitStack) -> "Model":
    with extra("cpu"):
        from lct_deploy.analysis.graph import GraphGates
    from lct_deploy.analysis.run import Model
    from lct_deploy.runtime.base import RuntimeOptions

    bundle = open_bundle(source)
    artifact = bundle.gates()
    if artifact is None:
        raise BundleError(
            f"{source}: was exported without its gates",
            hint=f"lct-deploy export CHECKPOINT -o {shlex.quote(str(source))} --gates --overwrite",
        )
    gates = GraphGates(bundle.file(artifact), RuntimeOptions())
    opened.enter_context(closing(gates))
    return Model(
        name=name,
        source=str(source),
        runtime="onnxruntime",
        gates=gates,
        preprocessing=bundle.manifest.input.preprocessing,
    )


def _open_checkpoint(source: Path, name: str, opened: ExitStack) -> "Model":
    with extra("export"):
        from lct_deploy.analysis.network import NetworkGates
        from lct_deploy.checkpoint import load_checkpoint
        from lct_deploy.evaluation.checkpoint import assumptions
    from lct_deploy.analysis.run import Model
    from lct_deploy.runtime.base import RuntimeOptions

    loaded = load_checkpoint(source)
    for note in assumptions(loaded):
        announce(f"note: {note}")
    gates = NetworkGates(loaded, RuntimeOptions())
    opened.enter_context(closing(gates))
    return Model(
        name=name, source=str(source), runtime="torch", gates=gates, preprocessing=loaded.preprocessing
    )
