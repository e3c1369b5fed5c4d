"""Labelled images as a network takes them, a batch at a time: memory does not grow with their number."""

import itertools
import math
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict

from lct_deploy.cores import available_cores
from lct_deploy.datasets import ArrayImages, LabelledImages
from lct_deploy.errors import DataError, ImageError
from lct_deploy.preprocessing import Preprocessing, load_image, preprocess

_AHEAD = 2  # batches that are decoded while one is computed
_LISTED = 20

Pixels = NDArray[np.uint8]


class Unreadable(BaseModel):
    """An image that was left out, and why."""

    model_config = ConfigDict(frozen=True)

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class LabelledBatch:
    """images (n, H, W, 3) uint8; labels (n,) as the data number them; indices (n,) in the data set."""

    images: Pixels
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]


class LabelledReader:
    """All readable images of a data set once, in its order, through the preprocessing of serving.

    Files are decoded by threads while the batch before them is computed. Iterating raises DataError as
    soon as more than `max_unreadable` cannot be read, or where none can; `unreadable` then has them.
    """

    def __init__(
        self, data: LabelledImages, preprocessing: Preprocessing, *, batch: int, max_unreadable: int = 0
    ) -> None:
        self.batch = batch
        self.unreadable: list[Unreadable] = []
        self._data, self._preprocessing, self._limit = data, preprocessing, max_unreadable

    def __len__(self) -> int:
        """Batches."""
        return math.ceil(len(self._data) / self.batch)

    def __iter__(self) -> Iterator[LabelledBatch]:
        self.unreadable.clear()
        found = False
        with closing(self._decoded()) as decoded:
            for batch in map(self._batch, decoded):
                if len(batch.labels):
                    found = True
                    yield batch
        if not found:
            raise DataError(_listing("none of the images can be read", self.unreadable))

    def name(self, index: int) -> str:
        """The path of an image, or its number where it has none."""
        return str(index) if isinstance(self._data, ArrayImages) else str(self._data.paths[index])

    def _decoded(self) -> Generator[list[tuple[int, "Future[Pixels]"]]]:
        """Images by index, a batch at a time, a few batches ahead."""
        pending: deque[list[tuple[int, Future[Pixels]]]] = deque()
        with ThreadPoolExecutor(available_cores(), thread_name_prefix="decode") as pool:
            try:
                for start in range(0, len(self._data), self.batch):
                    indices = range(start, min(start + self.batch, len(self._data)))
                    pending.append([(index, pool.submit(self._pixels, index)) for index in indices])
                    if len(pending) > _AHEAD:
                        yield pending.popleft()
                while pending:
                    yield pending.popleft()
            finally:
                for _, future in itertools.chain.from_iterable(pending):
                    future.cancel()

    def _pixels(self, index: int) -> Pixels:
        if isinstance(self._data, ArrayImages):
            return preprocess(Image.fromarray(self._data.images[index]), self._preprocessing)
        return load_image(self._data.paths[index], self._preprocessing)

    def _batch(self, decoded: list[tuple[int, "Future[Pixels]"]]) -> LabelledBatch:
        images: list[Pixels] = []
        indices: list[int] = []
        for index, future in decoded:
            try:
                images.append(future.result())
                indices.append(index)
            except ImageError as error:
                self._note(index, error)
        chosen = np.array(indices, np.int64)
        size = self._preprocessing.crop
        pixels = np.stack(images) if images else np.empty((0, size, size, 3), np.uint8)
        return LabelledBatch(images=pixels, labels=self._data.labels[chosen], indices=chosen)

    def _note(self, index: int, error: ImageError) -> None:
        path = self.name(index)
        reason = error.message.removeprefix(f"{path}: ")
        self.unreadable.append(Unreadable(path=path, reason=reason))
        if len(self.unreadable) > self._limit:
            raise DataError(
                _listing(
                    f"{len(self.unreadable)} of the first {index + 1} images cannot be read, "
                    f"over the limit of {self._limit}",
                    self.unreadable,
                ),
                hint="mend or remove them, or go on without them: --max-unreadable N",
            )


def _listing(what: str, unreadable: list[Unreadable]) -> str:
    lines = [f"  {image.path}: {image.reason}" for image in unreadable[:_LISTED]]
    more = len(unreadable) - len(lines)
    return "\n".join([f"{what}:", *lines, *([f"  and {more} more"] if more else [])])
