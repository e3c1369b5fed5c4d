"""What a network says of labelled images, beside what they are."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lct_deploy.errors import ParityError
from lct_deploy.evaluation.images import LabelledReader
from lct_deploy.parity import in_batches, softmax
from lct_deploy.progress import track
from lct_deploy.runtime import Runtime


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Of a batch, all (n,): which images of the data set, and by the network's classes what they are.

    `confidences` are the probabilities of the predictions, `ranks` those of the true classes, 0 the best.
    Equal logits rank by their class, the lower first, as in `predict`.
    """

    indices: NDArray[np.int64]
    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    confidences: NDArray[np.float64]
    ranks: NDArray[np.int64]


def read_answers(
    runtime: Runtime, reader: LabelledReader, classes: NDArray[np.int64], *, description: str
) -> Iterator[Answers]:
    """Run all images in batches of exactly the reader's size; `classes` are the network's, by the data's.

    Raises ParityError where logits are NaN or infinite: there is no telling what such a network says.
    """
    for batch in track(reader, description, total=len(reader)):
        (logits,) = in_batches(lambda images: [runtime.infer(images)], batch.images, reader.batch)
        broken = batch.indices[~np.isfinite(logits).all(axis=1)]
        if len(broken):
            raise ParityError(
                f"{reader.name(int(broken[0]))}: its logits are NaN or infinite on {runtime.spec.runtime}, "
                f"{runtime.spec.precision}",
                hint="lct-deploy verify BUNDLE --bisect names the layer that is to blame",
            )
        yield _answers(batch.indices, classes[batch.labels], logits)


def _answers(indices: NDArray[np.int64], labels: NDArray[np.int64], logits: NDArray[np.float32]) -> Answers:
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    first = np.arange(logits.shape[1]) < labels[:, None]
    return Answers(
        indices=indices,
        labels=labels,
        predictions=logits.argmax(axis=1),
        confidences=softmax(logits).max(axis=1),
        ranks=((logits > own) | ((logits == own) & first)).sum(axis=1),
    )
