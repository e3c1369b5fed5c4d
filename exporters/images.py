"""The images that parity is measured on: the user's own, or the shipped sample and patterns."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lct_deploy.datasets import list_images
from lct_deploy.errors import DataError
from lct_deploy.manifest import ImageSource
from lct_deploy.parity import MIN_IMAGES
from lct_deploy.preprocessing import Preprocessing, load_image, preprocess
from lct_deploy.progress import track
from lct_deploy.sample import load_sample

SYNTHETIC = 32
SMALL_IMAGE = 64  # pixels up to which the whole sample is cheap enough to compare
MAX_IMAGES = 512


@dataclass(frozen=True, kw_only=True)
class ParityImages:
    """Model inputs (N, H, W, 3) uint8; labels (N,) where all of the first ones are known."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    source: ImageSource


def parity_images(
    preprocessing: Preprocessing, directory: Path | None, class_names: tuple[str, ...]
) -> ParityImages:
    """At least 256 inputs of the network's size.

    Raises DataError where `directory` holds fewer, ImageError where one cannot be read.
    """
    if directory is not None:
        return _from_directory(directory, preprocessing)
    sample = load_sample()
    small = preprocessing.crop <= SMALL_IMAGE
    count = len(sample) if small else MIN_IMAGES - SYNTHETIC
    real = np.stack([preprocess(Image.fromarray(x), preprocessing) for x in sample.images[:count]])
    images = np.concatenate([real, synthetic_images(preprocessing.crop)])
    return ParityImages(
        images=images,
        labels=sample.labels[:count] if class_names == sample.classes else None,
        source=ImageSource(
            description="shipped Fashion-MNIST test sample, resized, and synthetic patterns",
            real=count,
            synthetic=SYNTHETIC,
        ),
    )


def _from_directory(directory: Path, preprocessing: Preprocessing) -> ParityImages:
    chosen = choose_files(directory)
    loaded = track((load_image(path, preprocessing) for path in chosen), "reading images", total=len(chosen))
    return ParityImages(
        images=np.stack(list(loaded)),
        labels=None,
        source=ImageSource(description=f"{len(chosen)} images of {directory}", real=len(chosen), synthetic=0),
    )


def choose_files(directory: Path) -> list[Path]:
    """Image files spread over all in `directory`; raises DataError where it has fewer than parity needs."""
    if not directory.is_dir():
        raise DataError(f"{directory}: no such directory")
    paths = list_images(directory)
    if len(paths) < MIN_IMAGES:
        raise DataError(
            f"{directory}: holds {len(paths)} JPEG, PNG or WebP images, parity needs {MIN_IMAGES}",
            hint="add images, or drop --images to use the shipped sample",
        )
    step = max(1, len(paths) // MAX_IMAGES)
    return paths[::step][:MAX_IMAGES]


def spread(count: int, total: int) -> NDArray[np.intp]:
    """The indices of `count` of `total` things, evenly over all of them; of all where there are fewer."""
    return np.linspace(0, total - 1, min(count, total)).astype(np.intp)


def synthetic_images(size: int) -> NDArray[np.uint8]:
    """32 patterns that stress a network: flat, saturated, periodic, noisy; the same every time."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:size, 0:size]
    flat = [(0, 0, 0), (255, 255, 255), (127, 127, 127), (255, 0, 0), (0, 255, 0), (0, 0, 255)]
    patterns = [np.full((size, size, 3), colour) for colour in flat]
    ramp = 255 * x / max(size - 1, 1)
    patterns += [_grey(g) for g in (ramp, ramp.T, (ramp + ramp.T) / 2, 255 - ramp)]
    patterns += [_grey(255 * (((x // p) + (y // p)) % 2)) for p in (1, 2, 4, 8, 16)]
    patterns += [_grey(255 * ((x // p) % 2)) for p in (1, 3, 7)]
    patterns += [_grey(127.5 + 127.5 * np.sin((x**2 + y**2) * f / size)) for f in (0.05, 0.2, 1.0)]
    patterns += [_grey(255 * (rng.random((size, size)) < p)) for p in (0.01, 0.5, 0.99)]
    while len(patterns) < SYNTHETIC:
        spread = 10 + 20 * (len(patterns) % 5)
        patterns.append(rng.normal(127, spread, (size, size, 3)))
    return np.clip(np.stack(patterns), 0, 255).astype(np.uint8)


def _grey(values: NDArray[np.generic]) -> NDArray[np.generic]:
    return np.repeat(values[..., None], 3, axis=2)
