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
from exporters.variants import CALIBRATED, EMULATED, TARGETS, make_variant
from lct_deploy.datasets import load_dataset
from lct_deploy.manifest import Precision
from lct_deploy.parity import in_batches
from lct_deploy.preprocessing import Preprocessing
from lct_deploy.runtime import RuntimeOptions, open_artifact
from lct_deploy.sample import DEMO_CHECKPOINT
from lct_deploy.train.batches import Batches

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
    images, labels = _test_split(data, prepared.preprocessing)
    reference = _top1(prepared.model, images, "fp32 portable")
    accuracy = 100 * float((reference == labels).mean())
    for precision, target, model in _graphs(prepared.model, prepared.preprocessing, prepared.labels, data):
        found = reference if precision == "fp32" else _top1(model, images, f"{precision} {target}")
        top1 = 100 * float((found == labels).mean())
        yield Row(
            checkpoint=checkpoint.name,
            arch=prepared.arch,
            size=prepared.preprocessing.crop,
            precision=precision,
            target=target,
            images=len(labels),
            top1=round(top1, 3),
            drop=round(accuracy - top1, 3),
            agreement=round(100 * float((found == reference).mean()), 3),
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


def _test_split(data: str, preprocessing: Preprocessing) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    batches = Batches(load_dataset(data, "test"), preprocessing, batch_size=500, augment=False)
    images, labels = zip(*batches.epoch(0), strict=True)
    return np.concatenate([x.numpy() for x in images]), np.concatenate([y.numpy() for y in labels])


def _top1(model: ModelProto, images: NDArray[np.uint8], description: str) -> NDArray[np.int64]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.onnx"
        onnx.save(model, path)
        with closing(open_artifact("onnxruntime", path, RuntimeOptions())) as opened:
            (logits,) = in_batches(lambda x: [opened.infer(x)], images, BATCH, description=description)
    return logits.argmax(axis=1)


if __name__ == "__main__":
    main()
