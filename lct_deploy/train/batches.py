"""Batches of uint8 images (N, H, W, 3) and labels, shuffled and augmented for training.

What an epoch holds follows from its number and the seed alone: each image is changed by random numbers
of its own, so that neither the size of batches, nor how many processes share them, nor where an epoch
is taken up again changes an image.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lct_deploy.datasets import ArrayImages, FolderImages, LabelledImages
from lct_deploy.preprocessing import Preprocessing, preprocess
from lct_deploy.progress import track
from lct_deploy.train.augment import draw_shifts, shift_and_flip
from lct_deploy.train.files import Batch, Unreadable, file_batches

_MIN_PART = 2  # images: BatchNorm has no variance of one


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which parts of each batch a process takes, one after another, where a batch has `parts`."""

    parts: int = 1
    own: range = range(1)


class Batches:
    """One split as batches, reshuffled by `epoch`; iterate with `epoch(n)`.

    A batch of `batch_size` images is cut into the parts of `share`, which differ by one image at most.
    In training a last batch too short to give each part two images is left out.
    """

    def __init__(
        self,
        images: LabelledImages,
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        augment: bool,
        seed: int = 0,
        workers: int = 0,
        share: Share | None = None,
        unreadable: Unreadable | None = None,
        pinned: bool = False,
    ) -> None:
        self._images = _resized(images, preprocessing) if isinstance(images, ArrayImages) else images
        self._preprocessing = preprocessing
        self._batch_size, self._augment = batch_size, augment
        self._seed, self._workers = seed, workers
        self._share = share or Share()
        self._unreadable, self._pinned = unreadable, pinned

    def __len__(self) -> int:
        """Steps an epoch, of all processes together."""
        whole, rest = divmod(len(self._images), self._batch_size)
        least = _MIN_PART * self._share.parts if self._augment else 1
        return whole + (rest >= least)

    def epoch(self, number: int, first: int = 0) -> Iterator[Batch]:
        """The parts that are this process's, of all steps from `first` on.

        Shuffled and augmented by (seed, number), or in order as they are.
        """
        generator = torch.Generator().manual_seed(self._seed * 100_003 + number)
        count = len(self._images)
        order = torch.randperm(count, generator=generator) if self._augment else torch.arange(count)
        if isinstance(self._images, ArrayImages):
            return self._from_memory(self._images, self._parts(order, first), generator)
        return self._from_files(self._images, self._parts(order, first), generator)

    def _parts(self, order: Tensor, first: int) -> Iterator[Tensor]:
        for batch in order.split(self._batch_size)[first : len(self)]:
            parts = batch.tensor_split(self._share.parts)
            yield from (parts[index] for index in self._share.own if len(parts[index]))

    def _from_memory(
        self, images: ArrayImages, parts: Iterator[Tensor], generator: torch.Generator
    ) -> Iterator[Batch]:
        pixels, labels = torch.tensor(images.images), torch.tensor(images.labels)
        shifts = draw_shifts(len(images), pixels.shape[1], generator) if self._augment else None
        for chosen in parts:
            batch = pixels[chosen]
            if shifts is not None:
                batch = shift_and_flip(batch, shifts[chosen])
            yield batch[..., None].expand(-1, -1, -1, 3), labels[chosen]

    def _from_files(
        self, images: FolderImages, parts: Iterator[Tensor], generator: torch.Generator
    ) -> Iterator[Batch]:
        seeds = torch.randint(2**63 - 1, (len(images),), generator=generator) if self._augment else None
        return file_batches(
            images,
            parts,
            self._preprocessing,
            seeds=seeds,
            workers=self._workers,
            unreadable=self._unreadable,
            pinned=self._pinned,
        )


def _resized(images: ArrayImages, preprocessing: Preprocessing) -> ArrayImages:
    """Every image through the preprocessing that serving applies; at its own size it stays as it is."""
    size = preprocessing.crop
    if images.images.shape[1:] == (size, size) == (preprocessing.resize,) * 2:
        return images
    pixels = np.empty((len(images), size, size), np.uint8)
    for index, image in enumerate(track(images.images, f"resizing to {size} pixels", total=len(images))):
        pixels[index] = preprocess(Image.fromarray(image), preprocessing)[..., 0]
    return dataclasses.replace(images, images=pixels)
