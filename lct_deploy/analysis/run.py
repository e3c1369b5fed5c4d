"""Networks over a data set, from its files to a directory of figures and numbers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lct_deploy.analysis.base import GateSource
from lct_deploy.analysis.blocks import choose_layers
from lct_deploy.analysis.statistics import Block, BlockCounter
from lct_deploy.analysis.summary import ModelSummary, Summary, summarize
from lct_deploy.atomic import atomic_directory, check_new_directory
from lct_deploy.datasets import LabelledImages, load_evaluation_data
from lct_deploy.errors import UsageError
from lct_deploy.evaluation.images import LabelledReader
from lct_deploy.preprocessing import Preprocessing
from lct_deploy.progress import track

ARRAYS, SUMMARY = "arrays.npz", "summary.json"
_SAVED = ("before", "after", "delta", "attention", "attention_sd", "attention_min", "attention_max")

Draw = Callable[[Mapping[str, Sequence[Block]], Path], None]


@dataclass(frozen=True, kw_only=True)
class Model:
    """An opened network; `name` is what plots call it, `source` where it comes from."""

    name: str
    source: str
    runtime: str
    gates: GateSource
    preprocessing: Preprocessing


@dataclass(frozen=True, kw_only=True)
class AnalyzeOptions:
    """How to analyse; `blocks` are drawn, by default the first of each stage."""

    blocks: tuple[str, ...] = ()
    batch: int = 32
    max_unreadable: int = 0
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class _Measured:
    model: Model
    reader: LabelledReader
    blocks: tuple[Block, ...]
    drawn: tuple[Block, ...]


def analyze(
    models: Sequence[Model], data: str, output: Path, options: AnalyzeOptions, *, draw: Draw
) -> Summary:
    """Measure every block of every network on all images, and write `output`, a new directory.

    `draw` makes the plots. Raises UsageError for an `output` that cannot be written, a network without
    attention, or blocks that it lacks; DataError as `evaluate` does; ParityError for values that are
    not finite. `output` is then as it was.
    """
    check_new_directory(output, overwrite=options.overwrite)
    drawn = [choose_layers(model.gates.channels, options.blocks, model.source) for model in models]
    _check_columns(models, drawn)
    images = load_evaluation_data(data)
    measured = [_measure(model, images, layers, options) for model, layers in zip(models, drawn, strict=True)]
    summary = Summary(data=data, models=tuple(map(_summary, measured)))
    with atomic_directory(output, overwrite=options.overwrite) as directory:
        np.savez_compressed(directory / ARRAYS, allow_pickle=False, **_arrays(measured))
        draw({m.model.name: m.drawn for m in measured}, directory)
        (directory / SUMMARY).write_text(summary.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return summary


def _measure(
    model: Model, images: LabelledImages, drawn: tuple[str, ...], options: AnalyzeOptions
) -> _Measured:
    reader = LabelledReader(
        images, model.preprocessing, batch=options.batch, max_unreadable=options.max_unreadable
    )
    counters = {layer: BlockCounter(layer) for layer in model.gates.channels}
    for batch in track(reader, model.name, total=len(reader)):
        for layer, attention in model.gates.read(batch.images).items():
            counters[layer].add(attention)
    blocks = {layer: counter.block() for layer, counter in counters.items()}
    shown = tuple(blocks[layer] for layer in drawn)
    return _Measured(model=model, reader=reader, blocks=tuple(blocks.values()), drawn=shown)


def _check_columns(models: Sequence[Model], drawn: Sequence[tuple[str, ...]]) -> None:
    if len(set(map(len, drawn))) > 1:
        pairs = zip(models, drawn, strict=True)
        stages = ", ".join(f"{model.name} has {len(layers)}" for model, layers in pairs)
        raise UsageError(
            f"networks with other numbers of stages cannot stand beside each other: {stages}",
            hint="--block names blocks that all of them have",
        )


def _summary(measured: _Measured) -> ModelSummary:
    model = measured.model
    return ModelSummary(
        name=model.name,
        source=model.source,
        runtime=model.runtime,
        images=measured.blocks[0].images,
        unreadable=tuple(measured.reader.unreadable),
        drawn=tuple(block.layer for block in measured.drawn),
        blocks=tuple(map(summarize, measured.blocks)),
    )


def _arrays(measured: Sequence[_Measured]) -> dict[str, NDArray[np.float64]]:
    """By `model/layer/array`."""
    return {
        f"{m.model.name}/{block.layer}/{name}": getattr(block, name)
        for m in measured
        for block in m.blocks
        for name in _SAVED
    }
