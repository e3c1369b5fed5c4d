"""A network over a labelled data set, from its files to its score."""

import csv
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lct_deploy.atomic import atomic_file, check_writable
from lct_deploy.datasets import load_evaluation_data
from lct_deploy.evaluation.answers import Answers, read_answers
from lct_deploy.evaluation.classes import match_classes
from lct_deploy.evaluation.images import LabelledReader, Unreadable
from lct_deploy.evaluation.scores import Score, Scores
from lct_deploy.evaluation.subject import Subject
from lct_deploy.manifest import Precision
from lct_deploy.runtime.base import RuntimeSpec

DEFAULT_BATCH = 32
_COLUMNS = ("image", "label", "prediction", "probability", "rank")


class Evaluation(Score):
    """The document that `lct-deploy evaluate --json` prints."""

    model: str
    runtime: str
    precision: Precision
    device: str
    versions: dict[str, str]
    batch: int
    data: str
    unreadable: tuple[Unreadable, ...]


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """How to evaluate; `batch` None is the largest that is compiled, or 32. `rows` is a CSV to write."""

    batch: int | None = None
    max_unreadable: int = 0
    rows: Path | None = None


def evaluate(subject: Subject, data: str, options: EvaluateOptions) -> Evaluation:
    """Score a network on `fashion-mnist`, a folder of IDX files, an ImageFolder tree or its class folders.

    Raises DataError for data that cannot be used, whose classes are not the network's, or of which more
    images than allowed cannot be read; UsageError for `rows` that cannot be written; ParityError for
    logits that are not finite.
    """
    if options.rows is not None:
        check_writable(options.rows)
    images = load_evaluation_data(data)
    classes = match_classes(images, subject.labels)
    spec = subject.runtime.spec
    batch = options.batch or _default_batch(spec)
    reader = LabelledReader(images, subject.preprocessing, batch=batch, max_unreadable=options.max_unreadable)
    scores = Scores(len(subject.labels))
    with _writer(options.rows, reader, subject.labels) as write:
        for answers in read_answers(subject.runtime, reader, classes, description="evaluating"):
            scores.add(answers)
            write(answers)
    return Evaluation(
        **dict(scores.score(subject.labels)),
        model=subject.name,
        runtime=spec.runtime,
        precision=spec.precision,
        device=spec.device,
        versions=spec.versions,
        batch=batch,
        data=data,
        unreadable=tuple(reader.unreadable),
    )


def _default_batch(spec: RuntimeSpec) -> int:
    """What was compiled is what serves, and so what is to be scored."""
    return max(spec.compiled_batches, default=DEFAULT_BATCH)


@contextmanager
def _writer(
    path: Path | None, reader: LabelledReader, labels: tuple[str, ...]
) -> Generator[Callable[[Answers], None]]:
    """Writes answers as rows of a CSV, which is there once all are; writes nothing without a path."""
    if path is None:
        yield lambda _: None
        return
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(_COLUMNS)

        def write(answers: Answers) -> None:
            writer.writerows(
                (reader.name(index), labels[label], labels[prediction], f"{confidence:.6f}", rank)
                for index, label, prediction, confidence, rank in zip(
                    answers.indices.tolist(),
                    answers.labels.tolist(),
                    answers.predictions.tolist(),
                    answers.confidences.tolist(),
                    answers.ranks.tolist(),
                    strict=True,
                )
            )

        yield write
