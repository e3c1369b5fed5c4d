"""The images that a backbone's parity is measured on: several sizes, odd sides among them, batch by batch.

All at once would not fit: an image's maps take a hundred times the room of the image.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from exporters.images import SYNTHETIC, choose_files, synthetic_images
from lct_deploy.manifest import AnySizeImages
from lct_deploy.parity import MIN_IMAGES
from lct_deploy.preprocessing import load_rgb
from lct_deploy.sample import load_sample

BATCH = 8
# Of short and long side, as detectors resize: 800 pixels, but no more than 1333.
_LONGEST = 1333 / 800
_GOLDEN_SIZES = ((64, 64), (97, 65), (33, 130), (71, 101))

Size = tuple[int, int]  # height and width


@dataclass(frozen=True, kw_only=True)
class BackboneImages:
    """`count` batches (N, H, W, 3) uint8, made anew by each call of `batches`."""

    batches: Callable[[], Iterator[NDArray[np.uint8]]]
    count: int
    source: AnySizeImages


def backbone_images(directory: Path | None, short_side: int) -> BackboneImages:
    """At least 256 images: those in `directory` in their own proportions, or the shipped sample.

    Raises DataError where `directory` holds fewer; reading one may raise ImageError.
    """
    return _sample(short_side) if directory is None else _from_directory(directory, short_side)


def golden_images() -> list[NDArray[np.uint8]]:
    """A few small images (1, H, W, 3) of different sizes: their maps travel with the bundle."""
    sample = load_sample().images
    return [_stretched(sample[i : i + 1], size) for i, size in enumerate(_GOLDEN_SIZES)]


def parity_sizes(short_side: int) -> list[Size]:
    """Square and oblong, odd sides among them at every stage, and a narrow strip."""
    short = short_side
    return [
        (short, short),
        (short, short * 4 // 3 | 1),
        (short * 3 // 2 | 1, short),
        (short - 1 | 1, short + 10 | 1),
        (short // 4 | 1, short * 2),
    ]


def _sample(short_side: int) -> BackboneImages:
    sizes, real = parity_sizes(short_side), MIN_IMAGES - SYNTHETIC
    images = load_sample().images[:real]

    def batches() -> Iterator[NDArray[np.uint8]]:
        for number, start in enumerate(range(0, MIN_IMAGES, BATCH)):
            size = sizes[number % len(sizes)]
            if start < real:
                yield _stretched(images[start : start + BATCH], size)
            else:
                yield _patterns(start - real, size)

    smallest, largest = (f"{h}x{w}" for h, w in (sizes[-1], sizes[2]))
    source = AnySizeImages(
        description=f"shipped Fashion-MNIST test sample and synthetic patterns in {len(sizes)} sizes "
        f"from {smallest} to {largest}",
        real=real,
        synthetic=SYNTHETIC,
        short_side=short_side,
    )
    return BackboneImages(batches=batches, count=MIN_IMAGES // BATCH, source=source)


def _from_directory(directory: Path, short_side: int) -> BackboneImages:
    chosen = choose_files(directory)
    source = AnySizeImages(
        description=f"{len(chosen)} images of {directory}, short side {short_side}",
        real=len(chosen),
        synthetic=0,
        short_side=short_side,
    )

    def batches() -> Iterator[NDArray[np.uint8]]:
        return (np.asarray(_scaled(load_rgb(path), short_side))[None] for path in chosen)

    return BackboneImages(batches=batches, count=len(chosen), source=source)


def _scaled(image: Image.Image, short_side: int) -> Image.Image:
    short, long = sorted(image.size)
    scale = min(short_side / short, _LONGEST * short_side / long)
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))


def _stretched(images: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """Greyscale (N, H, W) as RGB of `size`."""
    height, width = size
    resized = (Image.fromarray(x).resize((width, height), Image.Resampling.BILINEAR) for x in images)
    return np.stack([np.asarray(x.convert("RGB")) for x in resized])


def _patterns(start: int, size: Size) -> NDArray[np.uint8]:
    """A batch of the synthetic patterns, cut to `size`."""
    height, width = size
    return synthetic_images(max(size))[start : start + BATCH, :height, :width]
