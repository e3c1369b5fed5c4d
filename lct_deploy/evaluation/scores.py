"""Accuracy, confusion and calibration, counted as the answers come: memory depends on the classes alone."""

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from lct_deploy.evaluation.answers import Answers
from lct_deploy.intervals import wilson_interval

CALIBRATION_BINS = 15  # Guo et al., ICML 2017, arXiv:1706.04599
_TOP = 5


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class CalibrationBin(_Part):
    """Images whose confidence is in (lower, upper], in percent; null where there are none."""

    lower: float
    upper: float
    images: int
    confidence: float | None = Field(description="mean, in percent")
    accuracy: float | None = Field(description="in percent")


class Calibration(_Part):
    """How far confidence is from accuracy."""

    ece: float = Field(description="expected calibration error, in points: the bins' gaps by their images")
    bins: tuple[CalibrationBin, ...] = Field(description="of equal width")


class ClassScore(_Part):
    """One class of the network; top-1 is null where the data have no image of it."""

    index: int
    label: str
    images: int
    predicted: int = Field(description="images of any class that were taken for this one")
    top1: float | None = Field(description="in percent: recall")


class Confusion(_Part):
    """One cell of the confusion matrix, by the classes' indices."""

    label: int
    prediction: int
    images: int


class Score(_Part):
    """What was counted over all images, in percent."""

    images: int
    top1: float
    top1_interval: tuple[float, float] = Field(description="Wilson's, 95 %")
    top5: float | None = Field(description="null where the network has no more than five classes")
    calibration: Calibration
    classes: tuple[ClassScore, ...]
    confusion: tuple[Confusion, ...] = Field(description="the cells that are not 0, row by row")


class Scores:
    """Counts for a network of so many classes; `add` answers, then ask for the `score`."""

    def __init__(self, classes: int) -> None:
        self.confusion = np.zeros((classes, classes), np.int64)  # rows are what the images are
        self._in_top = 0
        self._bins = np.zeros(CALIBRATION_BINS, np.int64)
        self._right = np.zeros(CALIBRATION_BINS, np.int64)
        self._confidence = np.zeros(CALIBRATION_BINS)

    @property
    def images(self) -> int:
        return int(self.confusion.sum())

    @property
    def top1(self) -> float:
        """In percent."""
        return 100.0 * int(self.confusion.trace()) / self.images

    def add(self, answers: Answers) -> None:
        np.add.at(self.confusion, (answers.labels, answers.predictions), 1)
        self._in_top += int((answers.ranks < _TOP).sum())
        # Of the best of some probabilities, which is never 0.
        bins = np.ceil(answers.confidences * CALIBRATION_BINS).astype(np.int64) - 1
        np.add.at(self._bins, bins, 1)
        np.add.at(self._right, bins, answers.ranks == 0)
        np.add.at(self._confidence, bins, answers.confidences)

    def score(self, labels: tuple[str, ...]) -> Score:
        """Raises ZeroDivisionError before anything was added."""
        low, high = wilson_interval(int(self.confusion.trace()), self.images)
        return Score(
            images=self.images,
            top1=self.top1,
            top1_interval=(100.0 * low, 100.0 * high),
            top5=100.0 * self._in_top / self.images if len(labels) > _TOP else None,
            calibration=self._calibration(),
            classes=tuple(self._class(index, label) for index, label in enumerate(labels)),
            confusion=tuple(
                Confusion(label=int(i), prediction=int(j), images=int(self.confusion[i, j]))
                for i, j in np.argwhere(self.confusion)
            ),
        )

    def _class(self, index: int, label: str) -> ClassScore:
        images = int(self.confusion[index].sum())
        return ClassScore(
            index=index,
            label=label,
            images=images,
            predicted=int(self.confusion[:, index].sum()),
            top1=100.0 * int(self.confusion[index, index]) / images if images else None,
        )

    def _calibration(self) -> Calibration:
        gaps: NDArray[np.float64] = np.abs(self._right - self._confidence)
        bins = zip(self._bins.tolist(), self._confidence.tolist(), self._right.tolist(), strict=True)
        return Calibration(
            ece=100.0 * float(gaps.sum()) / self.images,
            bins=tuple(
                CalibrationBin(
                    lower=100.0 * i / CALIBRATION_BINS,
                    upper=100.0 * (i + 1) / CALIBRATION_BINS,
                    images=images,
                    confidence=100.0 * confidence / images if images else None,
                    accuracy=100.0 * right / images if images else None,
                )
                for i, (images, confidence, right) in enumerate(bins)
            ),
        )
