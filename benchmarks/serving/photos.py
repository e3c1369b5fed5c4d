"""Photographs to send: JPEG files that cost a decoder what photographs of their size do.

What photographs share is a spectrum that falls with the frequency, edges where one thing hides another,
and colour that varies less than brightness does. Discs that hide one another (the dead leaves model) over
1/f noise have all three. The same files every time.
"""

import io
import math
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZE = (500, 375)
QUALITY = 87
DISCS = 120
COUNT = 16  # how many differ: enough that no cache holds the answer, few enough to make at once

Floats = NDArray[np.float64]


@cache
def photos(count: int = COUNT, size: tuple[int, int] = SIZE) -> tuple[bytes, ...]:
    """JPEG files of `size`, width and height; of 500x375 pixels about 60 KB each."""
    return tuple(_encode(_scene(np.random.default_rng(seed), *size)) for seed in range(count))


def _encode(pixels: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def _scene(random: np.random.Generator, width: int, height: int) -> NDArray[np.uint8]:
    """Brightness of discs and noise; colours of the discs alone, and weaker."""
    brightness, colours = _leaves(random, width, height)
    brightness += 15 * _noise(random, width, height, slope=0.9)
    pixels = brightness[..., None] + colours
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _leaves(random: np.random.Generator, width: int, height: int) -> tuple[Floats, Floats]:
    """Discs whose radii are distributed as in photographs (1/r³), the later ones in front."""
    scale = width / SIZE[0]
    brightness = np.full((height, width), random.uniform(80, 170))
    colours = np.zeros((height, width, 3)) + random.normal(0, 12, 3)
    for _ in range(DISCS):
        radius = scale * min(12 / np.sqrt(random.uniform(0.005, 1)), 170)
        y, x = random.uniform(0, height), random.uniform(0, width)
        # Only where it can be: large pictures would take long.
        top, left = max(0, math.floor(y - radius)), max(0, math.floor(x - radius))
        rows, columns = np.ogrid[top : math.ceil(y + radius) + 1, left : math.ceil(x + radius) + 1]
        place = np.s_[top : top + len(rows), left : left + columns.size]
        disc = ((rows - y) ** 2 + (columns - x) ** 2 < radius**2)[: height - top, : width - left]
        brightness[place][disc] = random.normal(125, 50)
        colours[place][disc] = random.normal(0, 18, 3)
    return brightness, colours


def _noise(random: np.random.Generator, width: int, height: int, *, slope: float) -> Floats:
    """Noise of unit variance whose amplitude falls with the frequency to the power of `slope`."""
    y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    frequency = np.hypot(y, x)
    frequency[0, 0] = 1
    noise = np.fft.irfft2(
        np.fft.rfft2(random.normal(size=(height, width))) / frequency**slope, (height, width)
    )
    noise -= noise.mean()
    return noise / noise.std()
