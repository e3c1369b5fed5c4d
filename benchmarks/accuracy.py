"""Top-1 of a checkpoint in every precision, on a labelled test split, beside fp32's.

`python -m benchmarks.accuracy [CHECKPOINT ...] --data fashion-mnist` calibrates int8 and fp8 on the train
split, runs each graph on onnxruntime (bf16 and fp8 in float32, what is in the type rounded to it), and
writes benchmarks/results/accuracy.csv. A network of another size gets the images resized, as serving does.
"""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from benchmarks.rows import RESULTS, write_rows
from exporters.from_checkpoint import prepare_checkpoint
from exporters.images import parity_images
from exporters.options import CalibrationOptions, ExportOptions
from exporters.prepared import Prepared
from exporters.variants import CALIBRATED, EMULATED, TARGETS, make_variant
from lct_deploy.datasets import LabelledImages, load_evaluation_data
from lct_deploy.evaluation.answers import read_answers
from lct_deploy.evaluation.classes import match_classes
from lct_deploy.evaluation.images import LabelledReader
from lct_deploy.evaluation.scores import Scores
from lct_deploy.manifest import Precision
from lct_deploy.preprocessing import Preprocessing
from lct_deploy.runtime import RuntimeOptions, open_artifact
from lct_deploy.sample import DEMO_CHECKPOINT

BATCH = 50


@dataclass(frozen=True, kw_only=True)
class Row:
    """One graph; top-1 and its drop in percent and points, agreement with fp32's top-1 in percent."""

    checkpoint: str
    arch: str
    size: int
    precision: str
    target: str
    images: int
    top1: float
    drop: float
    agreement: float


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """Top-1 in percent, and what each image is taken for, (N,)."""

    top1: float
    predictions: NDArray[np.int64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkpoints", nargs="*", type=Path, default=[DEMO_CHECKPOINT])
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--output", type=Path, default=RESULTS / "accuracy.csv")
    arguments = parser.parse_args()
    rows = [row for path in arguments.checkpoints for row in _rows(path, arguments.data)]
    write_rows(arguments.output, [asdict(row) for row in rows])
    for row in rows:
        print(f"{row.arch} {row.precision} {row.target}: {row.top1:.2f} %, drop {row.drop:+.2f}")


def _rows(checkpoint: Path, data: str) -> Iterator[Row]:
    prepared = prepare_checkpoint(checkpoint, ExportOptions())
    images = load_evaluation_data(data)
    reference = _measure(prepared.model, images, prepared, "fp32 portable")
    for precision, target, model in _graphs(prepared.model, prepared.preprocessing, prepared.labels, data):
        found = reference
        if precision != "fp32":
            found = _measure(model, images, prepared, f"{precision} {target}")
        yield Row(
            checkpoint=checkpoint.name,
            arch=prepared.arch,
            size=prepared.preprocessing.crop,
            precision=precision,
            target=target,
            images=len(found.predictions),
            top1=round(found.top1, 3),
            drop=round(reference.top1 - found.top1, 3),
            agreement=round(100 * float((found.predictions == reference.predictions).mean()), 3),
        )


def _graphs(
    model: ModelProto, preprocessing: Preprocessing, labels: tuple[str, ...], data: str
) -> Iterator[tuple[Precision, str, ModelProto]]:
    """The portable graph, then each other precision for each of its targets."""
    yield "fp32", "portable", model
    parity = parity_images(preprocessing, None, labels)
    for precision in ("fp16", "bf16", *CALIBRATED):
        calibrated = precision in CALIBRATED
        calibration = CalibrationOptions(data=data) if calibrated else CalibrationOptions()
        for target in TARGETS[precision] if calibrated else ("portable",):
            options = ExportOptions(precision=precision, target=target, calibration=calibration)
            variant = make_variant(model, options, preprocessing, parity).model
            yield precision, target, EMULATED[precision][0](variant) if precision in EMULATED else variant


def _measure(model: ModelProto, images: LabelledImages, prepared: Prepared, description: str) -> _Measured:
    reader = LabelledReader(images, prepared.preprocessing, batch=BATCH)
    classes = match_classes(images, prepared.labels)
    scores = Scores(len(prepared.labels))
    predictions: list[NDArray[np.int64]] = []
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.onnx"
        onnx.save(model, path)
        with closing(open_artifact("onnxruntime", path, RuntimeOptions())) as opened:
            for answers in read_answers(opened, reader, classes, description=description):
                scores.add(answers)
                predictions.append(answers.predictions)
    return _Measured(top1=scores.top1, predictions=np.concatenate(predictions))


if __name__ == "__main__":
    main()
