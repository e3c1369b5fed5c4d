"""Batches of uint8 images (N, H, W, 3) and labels, augmented for training.

Images in memory are cropped and flipped as whole batches; image files are decoded by worker
processes with the random-resized crop of the paper (§ Implementation details).
"""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from lct_deploy.datasets import ArrayImages, FolderImages, LabelledImages
from lct_deploy.errors import ImageError
from lct_deploy.preprocessing import Preprocessing, load_image, load_rgb, preprocess
from lct_deploy.progress import track

Batch = tuple[Tensor, Tensor]

_MIN_SHIFT = 2  # pixels that an image of up to 28 may shift; larger ones by a 14th of their height
_SCALE = (0.08, 1.0)  # share of the area that a random-resized crop keeps
_RATIO = (3 / 4, 4 / 3)


class Batches:
    """One split as batches, reshuffled by `epoch`; iterate with `epoch(n)`."""

    def __init__(
        self,
        images: LabelledImages,
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        augment: bool,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        self._images = _resized(images, preprocessing) if isinstance(images, ArrayImages) else images
        self._preprocessing = preprocessing
        self._batch_size, self._augment = batch_size, augment
        self._seed, self._workers = seed, workers

    def __len__(self) -> int:
        return math.ceil(len(self._images) / self._batch_size)

    def epoch(self, number: int) -> Iterator[Batch]:
        """All images once: shuffled and augmented by (seed, number), or in order as they are."""
        generator = torch.Generator().manual_seed(self._seed * 100_003 + number)
        count = len(self._images)
        order = torch.randperm(count, generator=generator) if self._augment else torch.arange(count)
        if isinstance(self._images, ArrayImages):
            return self._from_memory(self._images, order, generator)
        return self._from_files(self._images, order, generator)

    def _from_memory(self, images: ArrayImages, order: Tensor, generator: torch.Generator) -> Iterator[Batch]:
        pixels, labels = torch.tensor(images.images), torch.tensor(images.labels)
        for chosen in order.split(self._batch_size):
            batch = pixels[chosen]
            if self._augment:
                batch = _shift_and_flip(batch, generator)
            yield batch[..., None].expand(-1, -1, -1, 3), labels[chosen]

    def _from_files(self, images: FolderImages, order: Tensor, generator: torch.Generator) -> Iterator[Batch]:
        # One seed an image: which worker crops it, or how many there are, changes nothing.
        seeds = torch.randint(2**63 - 1, (len(images),), generator=generator) if self._augment else None
        dataset = _ImageFiles(images, self._preprocessing, seeds)
        loader = DataLoader(
            Subset(dataset, order.tolist()),
            batch_size=self._batch_size,
            num_workers=self._workers,
            generator=generator,
            collate_fn=_collate,
        )
        for batch in loader:
            if isinstance(batch, ImageError):
                raise batch
            yield batch


class _ImageFiles(Dataset[tuple[Tensor, int] | ImageError]):
    """Files with their labels: cropped at random by `seeds`, one an image, or as evaluation does.

    The error of a file that cannot be used is returned: one that a worker process raises comes out
    with the worker's traceback for its message.
    """

    def __init__(self, images: FolderImages, preprocessing: Preprocessing, seeds: Tensor | None) -> None:
        self._images, self._preprocessing, self._seeds = images, preprocessing, seeds

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, int] | ImageError:
        try:
            pixels = self._pixels(index)
        except ImageError as error:
            return error
        return torch.from_numpy(pixels), int(self._images.labels[index])

    def _pixels(self, index: int) -> NDArray[np.uint8]:
        path = self._images.paths[index]
        if self._seeds is None:
            return load_image(path, self._preprocessing).copy()
        generator = torch.Generator().manual_seed(int(self._seeds[index]))
        return random_resized_crop(load_rgb(path), self._preprocessing.crop, generator)


def _collate(samples: list[tuple[Tensor, int] | ImageError]) -> Batch | ImageError:
    """One batch of the samples, or the first error among them."""
    images: list[Tensor] = []
    labels: list[int] = []
    for sample in samples:
        if isinstance(sample, ImageError):
            return sample
        images.append(sample[0])
        labels.append(sample[1])
    return torch.stack(images), torch.tensor(labels)


def random_resized_crop(
    image: Image.Image, size: int, generator: torch.Generator | None = None
) -> NDArray[np.uint8]:
    """A random region of random area and aspect, resized to (size, size, 3), flipped half the time."""
    left, top, width, height = _random_region(image.width, image.height, generator)
    box = (left, top, left + width, top + height)
    resized = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    pixels = np.array(resized)
    return np.ascontiguousarray(pixels[:, ::-1] if torch.rand((), generator=generator) < 0.5 else pixels)


def _random_region(width: int, height: int, generator: torch.Generator | None) -> tuple[int, int, int, int]:
    for _ in range(10):
        area = width * height * float(torch.empty(()).uniform_(*_SCALE, generator=generator))
        bounds = math.log(_RATIO[0]), math.log(_RATIO[1])
        log_ratio = torch.empty(()).uniform_(*bounds, generator=generator)
        ratio = math.exp(float(log_ratio))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left = int(torch.randint(width - w + 1, (), generator=generator))
            top = int(torch.randint(height - h + 1, (), generator=generator))
            return left, top, w, h
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side, side


def _shift_and_flip(batch: Tensor, generator: torch.Generator) -> Tensor:
    """(N, H, W) images shifted by up to two pixels or a 14th on zeros and flipped half the time."""
    count, height, width = batch.shape
    pad = max(_MIN_SHIFT, height // 14)
    padded = torch.nn.functional.pad(batch, (pad,) * 4)
    offsets = torch.randint(2 * pad + 1, (2, count, 1), generator=generator)
    rows = offsets[0] + torch.arange(height)
    columns = offsets[1] + torch.arange(width)
    flip = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(flip, columns.flip(1), columns)
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _resized(images: ArrayImages, preprocessing: Preprocessing) -> ArrayImages:
    """Every image through the preprocessing that serving applies; at its own size it stays as it is."""
    size = preprocessing.crop
    if images.images.shape[1:] == (size, size) == (preprocessing.resize,) * 2:
        return images
    pixels = np.empty((len(images), size, size), np.uint8)
    for index, image in enumerate(track(images.images, f"resizing to {size} pixels", total=len(images))):
        pixels[index] = preprocess(Image.fromarray(image), preprocessing)[..., 0]
    return dataclasses.replace(images, images=pixels)
