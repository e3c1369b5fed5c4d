"""Logits to labelled probabilities: what predict and the server answer with."""

from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from lct_deploy.bundle import Bundle
from lct_deploy.manifest import Precision
from lct_deploy.parity import softmax
from lct_deploy.preprocessing import load_image
from lct_deploy.progress import track
from lct_deploy.runtime import Runtime


class Prediction(BaseModel):
    """One class and its softmax probability."""

    model_config = ConfigDict(frozen=True)

    index: int = Field(ge=0)
    label: str
    probability: float = Field(ge=0, le=1)


class TopClass(TypedDict):
    """The same as plain values, which cost a server far less than models."""

    index: int
    label: str
    probability: float


class ImagePredictions(BaseModel):
    """The best classes of one file, the most probable first."""

    path: str
    predictions: list[Prediction]


class PredictReport(BaseModel):
    """The document that `lct-deploy predict --json` prints."""

    model: str
    runtime: str
    precision: Precision
    images: list[ImagePredictions]


def top_k(logits: NDArray[np.float32], labels: tuple[str, ...], k: int) -> list[list[Prediction]]:
    """`top_classes` as models."""
    return [[Prediction(**best) for best in row] for row in top_classes(logits, labels, k)]


def top_classes(logits: NDArray[np.float32], labels: tuple[str, ...], k: int) -> list[list[TopClass]]:
    """The k most probable classes of each row of logits (N, classes); ties go to the lower index."""
    probabilities = softmax(logits)
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    return [
        [
            {"index": i, "label": labels[i], "probability": p}
            for i, p in zip(best.tolist(), row[best].tolist(), strict=True)
        ]
        for best, row in zip(order, probabilities, strict=True)
    ]


def predict_files(bundle: Bundle, runtime: Runtime, paths: list[Path], *, k: int) -> PredictReport:
    """Classify image files, one at a time; raises ImageError naming the first that cannot be read."""
    manifest = bundle.manifest
    images: list[ImagePredictions] = []
    for path in track(paths, "predicting", total=len(paths)):
        batch = load_image(path, manifest.input.preprocessing)[None]
        predictions = top_k(runtime.infer(batch), manifest.labels, k)[0]
        images.append(ImagePredictions(path=str(path), predictions=predictions))
    return PredictReport(
        model=manifest.name, runtime=runtime.spec.runtime, precision=runtime.spec.precision, images=images
    )
