"""Small data sets in MNIST's format, for tests that train or read one."""

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.tobytes())


def write_idx_dataset(directory: Path, *, classes: int, train: int, test: int, size: int = 28) -> None:
    """Classes that differ in brightness, so that a network can learn them."""
    directory.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for name, count in (("train", train), ("t10k", test)):
        labels = np.arange(count, dtype=np.uint8) % classes
        level = (40 + 170 * labels.astype(float) / max(classes - 1, 1))[:, None, None]
        images = np.clip(rng.normal(level, 20, (count, size, size)), 0, 255).astype(np.uint8)
        write_idx(directory / f"{name}-images-idx3-ubyte", images)
        write_idx(directory / f"{name}-labels-idx1-ubyte", labels)
