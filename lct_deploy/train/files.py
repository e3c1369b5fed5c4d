"""Image files as batches, decoded and cropped by worker processes."""

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lct_deploy.datasets import FolderImages
from lct_deploy.errors import ImageError, LctDeployError
from lct_deploy.preprocessing import Preprocessing, load_image, load_rgb
from lct_deploy.train.augment import random_resized_crop

Batch = tuple[Tensor, Tensor]
_Sample = tuple[Tensor, int] | ImageError
_Collated = tuple[Batch | None, list[ImageError]]


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """Images that a run has left out because they cannot be used, each with the reason."""

    limit: int
    reasons: set[str] = field(default_factory=set[str])


def file_batches(
    images: FolderImages,
    chosen: Iterable[Tensor],
    preprocessing: Preprocessing,
    *,
    seeds: Tensor | None,
    workers: int,
    unreadable: Unreadable | None,
    pinned: bool,
) -> Iterator[Batch]:
    """A batch for each index tensor in `chosen`: cropped at random by `seeds`, or as evaluation does.

    Without `unreadable` the first image that cannot be used raises its ImageError; with it such images
    are left out and noted there, and only a batch of which nothing is left raises one.
    """
    loader = DataLoader(
        _ImageFiles(images, preprocessing, seeds),
        batch_sampler=(indices.tolist() for indices in chosen),  # pyright: ignore[reportArgumentType]
        num_workers=workers,
        generator=torch.Generator(),  # of the workers' seeds, which nothing uses: no global one is drawn from
        collate_fn=_collate,
        pin_memory=pinned,
        worker_init_fn=_leave_signals,
    )
    for batch, errors in _while_alive(loader):
        if errors and unreadable is None:
            raise errors[0]
        if unreadable is not None:
            unreadable.reasons.update(error.message for error in errors)
        if batch is None:
            raise ImageError(f"no image of a batch can be used: {errors[0].message}")
        yield batch


def _while_alive(loader: Iterable[_Collated]) -> Iterator[_Collated]:
    """What the workers send; raises LctDeployError where one has died, as for want of memory."""
    try:
        yield from _started(loader)
    except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
        # Of the last three, whichever a dead worker's socket is met with while a batch is taken from it.
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise LctDeployError(
            f"a process that decodes images has died: {(str(error) or type(error).__name__).splitlines()[0]}",
            hint="--workers with fewer takes less memory; --resume goes on from the last state",
        ) from error


def _started(loader: Iterable[_Collated]) -> Iterator[_Collated]:
    """The loader's iterator, which tells of a worker's death where the next batch is asked for.

    The handler of SIGCHLD that PyTorch installs with it would raise wherever the main thread is: within
    a step, while a checkpoint is written, or on top of an error that the death has already caused.
    """
    before = signal.getsignal(signal.SIGCHLD)
    iterator = iter(loader)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before)
    return iterator


class _ImageFiles(Dataset[_Sample]):
    """Files with their labels; the error of a file that cannot be used is returned.

    One that a worker process raises would come out with the worker's traceback for its message.
    """

    def __init__(self, images: FolderImages, preprocessing: Preprocessing, seeds: Tensor | None) -> None:
        # In one block: workers that touch a million Python objects copy the pages that they share.
        self._paths = np.array([os.fsencode(path) for path in images.paths])
        self._labels, self._preprocessing, self._seeds = images.labels, preprocessing, seeds

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> _Sample:
        try:
            pixels = self._pixels(index)
        except ImageError as error:
            return error
        return torch.from_numpy(pixels), int(self._labels[index])

    def _pixels(self, index: int) -> NDArray[np.uint8]:
        path = Path(os.fsdecode(self._paths[index]))
        if self._seeds is None:
            return load_image(path, self._preprocessing).copy()
        generator = torch.Generator().manual_seed(int(self._seeds[index]))
        return random_resized_crop(load_rgb(path), self._preprocessing.crop, generator)


def _collate(samples: list[_Sample]) -> _Collated:
    """One batch of the samples that there are, and the errors of the others."""
    good = [sample for sample in samples if not isinstance(sample, ImageError)]
    errors = [sample for sample in samples if isinstance(sample, ImageError)]
    if not good:
        return None, errors
    images, labels = zip(*good, strict=True)
    return (torch.stack(images), torch.tensor(labels)), errors


def _leave_signals(_: int) -> None:
    """Ctrl-C goes to every process of a terminal: the one that trains finishes its step first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
