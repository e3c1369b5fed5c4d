"""Training images changed at random: the paper's random-resized crop, shifts for small pictures, flips."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

_MIN_SHIFT = 2  # pixels that an image of up to 28 may shift; larger ones by a 14th of their height
_SCALE = (0.08, 1.0)  # share of the area that a random-resized crop keeps
_RATIO = (3 / 4, 4 / 3)


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


def draw_shifts(count: int, height: int, generator: torch.Generator) -> Tensor:
    """(count, 3) int64 for `shift_and_flip`: rows and columns up to two pixels or a 14th, and 0 or 1."""
    reach = max(_MIN_SHIFT, height // 14)
    moves = torch.randint(-reach, reach + 1, (count, 2), generator=generator)
    return torch.cat([moves, torch.randint(2, (count, 1), generator=generator)], dim=1)


def shift_and_flip(batch: Tensor, shifts: Tensor) -> Tensor:
    """(N, H, W) images moved on black by `shifts` (N, 3) and, where its last column says so, mirrored."""
    count, height, width = batch.shape
    reach = max(_MIN_SHIFT, height // 14)
    padded = torch.nn.functional.pad(batch, (reach,) * 4)
    rows = reach + shifts[:, :1] + torch.arange(height)
    columns = reach + shifts[:, 1:2] + torch.arange(width)
    columns = torch.where(shifts[:, 2:] == 1, columns.flip(1), columns)
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
