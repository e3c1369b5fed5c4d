"""The images that ranges are measured on: never those that parity is measured on."""

import hashlib
import math
from collections.abc import Callable, Iterator, Set
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lct_deploy.datasets import FASHION_MNIST, ArrayImages, list_images, load_dataset
from lct_deploy.errors import DataError
from lct_deploy.preprocessing import Preprocessing, load_image, preprocess

MIN_IMAGES = 64
DEFAULT_IMAGES = 512
BATCH = 4  # small: the activations of a batch are all in memory at once

Images = NDArray[np.uint8]


def calibration_images(
    source: str, preprocessing: Preprocessing, *, exclude: Set[str], count: int = DEFAULT_IMAGES
) -> "CalibrationImages":
    """`count` images of a directory at most, of its `train` folder if it has one, or of IDX files.

    `source` may also be `fashion-mnist`. `exclude` holds the `content_hashes` of images that must not
    be used. Raises DataError where there are fewer than 64.
    """
    load, available = _open(source, preprocessing)
    if available < MIN_IMAGES:
        raise DataError(
            f"{source}: holds {available} JPEG, PNG or WebP images, calibration needs {MIN_IMAGES}",
            hint="add images of the kind that the network will see",
        )
    return CalibrationImages(source, load, available, exclude=exclude, count=count)


class CalibrationImages:
    """Batches (n, H, W, 3), read as they are asked for, in an order that is the same every time.

    Excluded images are left out and others take their place. Iterating raises DataError where fewer
    than 64 remain, ImageError naming a file that cannot be read.
    """

    def __init__(
        self,
        source: str,
        load: Callable[[int], Images],
        available: int,
        *,
        exclude: Set[str],
        count: int = DEFAULT_IMAGES,
    ) -> None:
        self.source, self.load, self.available = source, load, available
        self.exclude, self.count = exclude, min(max(count, MIN_IMAGES), available)
        self.used = self.skipped = 0

    def __len__(self) -> int:
        """Batches, if nothing is left out."""
        return math.ceil(self.count / BATCH)

    def __iter__(self) -> Iterator[Images]:
        self.used = self.skipped = 0
        batch: list[Images] = []
        for image in self._images():
            batch.append(image)
            if len(batch) == BATCH:
                yield np.stack(batch)
                batch = []
        if batch:
            yield np.stack(batch)
        if self.used < MIN_IMAGES:
            raise DataError(
                f"{self.source}: {self.used} images are left for calibration, which needs {MIN_IMAGES}: "
                f"{self.skipped} of its {self.available} are images that parity is measured on",
                hint="add images, or measure parity on others with --images",
            )

    def notes(self) -> tuple[str, ...]:
        """What a user should know of the last iteration."""
        used = f"ranges are calibrated on {self.used} images of {self.source}"
        if not self.skipped:
            return (used,)
        return (used, f"{self.skipped} images that parity is measured on were left out of calibration")

    def _images(self) -> Iterator[Images]:
        """A random choice, since files come sorted by class."""
        for index in np.random.default_rng(0).permutation(self.available):
            if self.used == self.count:
                return
            image = self.load(int(index))
            if content_hash(image) in self.exclude:
                self.skipped += 1
            else:
                self.used += 1
                yield image


def content_hash(image: Images) -> str:
    """The identity of a model's input: equal for equal pixels, whatever the file."""
    return hashlib.sha256(image.tobytes()).hexdigest()


def content_hashes(images: Images) -> frozenset[str]:
    """`content_hash` of each of (N, H, W, 3)."""
    return frozenset(map(content_hash, images))


def _open(source: str, preprocessing: Preprocessing) -> tuple[Callable[[int], Images], int]:
    """What gives the image at an index, and how many there are."""
    directory = Path(source)
    if source == FASHION_MNIST or any(directory.glob("*-images-idx3-ubyte*")):
        data = load_dataset(source, "train")
        if isinstance(data, ArrayImages):
            images = data.images
            return lambda index: preprocess(Image.fromarray(images[index]), preprocessing), len(images)
    if not directory.is_dir():
        raise DataError(f"{directory}: no such directory")
    train = directory / "train"
    paths = list_images(train if train.is_dir() else directory)
    return lambda index: load_image(paths[index], preprocessing), len(paths)
