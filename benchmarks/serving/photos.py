"""Photographs to send: JPEG files that cost a decoder what photographs of their size do.

What photographs share is a spectrum that falls with the frequency, edges where one thing hides another,
and colour that varies less than brightness does. Discs that hide one another (the dead leaves model) over
1/f noise have all three. The same files every time.
"""

import io
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

WIDTH, HEIGHT = 500, 375
QUALITY = 87
DISCS = 120
COUNT = 16  # how many differ: enough that no cache holds the answer, few enough to make at once

Floats = NDArray[np.float64]


@cache
def photos(count: int = COUNT) -> tuple[bytes, ...]:
    """JPEG files of 500x375 pixels, about 60 KB each."""
    return tuple(_encode(_scene(np.random.default_rng(seed))) for seed in range(count))


def _encode(pixels: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def _scene(random: np.random.Generator) -> NDArray[np.uint8]:
    """Brightness of discs and noise; colours of the discs alone, and weaker."""
    brightness, colours = _leaves(random)
    brightness += 15 * _noise(random, slope=0.9)
    pixels = brightness[..., None] + colours
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _leaves(random: np.random.Generator) -> tuple[Floats, Floats]:
    """Discs whose radii are distributed as in photographs (1/r³), the later ones in front."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    brightness = np.full((HEIGHT, WIDTH), random.uniform(80, 170))
    colours = np.zeros((HEIGHT, WIDTH, 3)) + random.normal(0, 12, 3)
    for _ in range(DISCS):
        radius = min(12 / np.sqrt(random.uniform(0.005, 1)), 170)
        y, x = random.uniform(0, HEIGHT), random.uniform(0, WIDTH)
        disc = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
        brightness[disc] = random.normal(125, 50)
        colours[disc] = random.normal(0, 18, 3)
    return brightness, colours


def _noise(random: np.random.Generator, *, slope: float) -> Floats:
    """Noise of unit variance whose amplitude falls with the frequency to the power of `slope`."""
    y, x = np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None]
    frequency = np.hypot(y, x)
    frequency[0, 0] = 1
    noise = np.fft.irfft2(
        np.fft.rfft2(random.normal(size=(HEIGHT, WIDTH))) / frequency**slope, (HEIGHT, WIDTH)
    )
    noise -= noise.mean()
    return noise / noise.std()
