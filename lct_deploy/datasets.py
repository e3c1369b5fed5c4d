"""Labelled images on disk, without torch: IDX files (MNIST's format) and class folders."""

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lct_deploy.errors import DataError
from lct_deploy.progress import track

# Where Debian's package `dataset-fashion-mnist` puts the files.
FASHION_MNIST = "fashion-mnist"
FASHION_MNIST_DIR = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_LABELS = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
_MAX_RANK = 4
_IDX_NAMES = {"train": "train", "test": "t10k"}
_SPLIT_FOLDERS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class ArrayImages:
    """Greyscale images in memory: images (N, H, W) uint8, labels (N,) int64.

    Not `named`, the classes are numbers only, as those of IDX files.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    named: bool = True

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class FolderImages:
    """Image files in one folder per class, the classes in alphabetical order."""

    paths: tuple[Path, ...]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)


LabelledImages = ArrayImages | FolderImages


def load_dataset(source: str, split: str) -> LabelledImages:
    """The `train` or `test` split of `fashion-mnist`, a folder of IDX files or an ImageFolder tree.

    Raises DataError where the files are missing, damaged or do not belong together.
    """
    directory = FASHION_MNIST_DIR if source == FASHION_MNIST else Path(source)
    if not directory.is_dir():
        hint = "install Debian's package dataset-fashion-mnist, or give the folder with its IDX files"
        raise DataError(f"{directory}: no such directory", hint=hint if source == FASHION_MNIST else None)
    if _idx_file(directory, split, "images-idx3") is not None:
        classes = FASHION_MNIST_LABELS if source == FASHION_MNIST else None
        return _load_idx_split(directory, split, classes)
    return load_image_folder(_split_directory(directory, split))


def load_evaluation_data(source: str) -> LabelledImages:
    """The test split of a data set; of a directory that has no splits, the folders in it are the classes.

    Raises DataError as `load_dataset` does.
    """
    directory = Path(source)
    has_splits = any((directory / name).is_dir() for name in _SPLIT_FOLDERS)
    if source == FASHION_MNIST or has_splits or _idx_file(directory, "test", "images-idx3") is not None:
        return load_dataset(source, "test")
    if not directory.is_dir():
        raise DataError(f"{directory}: no such directory")
    return load_image_folder(directory)


def load_image_folder(directory: Path) -> FolderImages:
    """Every JPEG, PNG and WebP below `directory`, which has one folder per class."""
    classes = tuple(sorted(path.name for path in directory.iterdir() if path.is_dir()))
    if not classes:
        raise DataError(
            f"{directory}: neither IDX files nor one folder per class",
            hint=f"expected {directory}/CLASS/IMAGE.jpg",
        )
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(track(classes, f"listing {directory}", total=len(classes))):
        found = list_images(directory / name)
        if not found:
            raise DataError(f"{directory / name}: the class has no JPEG, PNG or WebP image")
        paths += found
        labels += [label] * len(found)
    return FolderImages(paths=tuple(paths), labels=np.array(labels, np.int64), classes=classes)


def list_images(directory: Path) -> list[Path]:
    """Image files anywhere below `directory`, in a stable order."""
    return sorted(p for p in directory.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The uint8 array of an IDX file, gzipped or not (yann.lecun.com/exdb/mnist, "file formats").

    Raises DataError for a file that is not IDX, of another type, or shorter than it says.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if len(data) < 4 or data[:3] != b"\x00\x00\x08" or data[3] > _MAX_RANK:
        raise DataError(f"{path}: not an IDX file of unsigned bytes in up to {_MAX_RANK} dimensions")
    rank = data[3]
    header = 4 + 4 * rank
    if len(data) < header:
        raise DataError(f"{path}: truncated in its header")
    shape = struct.unpack(f">{rank}I", data[4:header])
    values = np.frombuffer(data, np.uint8, offset=header)
    if values.size != math.prod(shape):
        raise DataError(f"{path}: holds {values.size} bytes of data, its header says {shape}")
    return values.reshape(shape)


def _idx_file(directory: Path, split: str, kind: str) -> Path | None:
    stem = f"{_IDX_NAMES[split]}-{kind}-ubyte"
    for name in (f"{stem}.gz", stem):
        if (directory / name).is_file():
            return directory / name
    return None


def _load_idx_split(directory: Path, split: str, classes: tuple[str, ...] | None) -> ArrayImages:
    images_path, labels_path = (_idx_file(directory, split, k) for k in ("images-idx3", "labels-idx1"))
    if images_path is None or labels_path is None:
        raise DataError(f"{directory}: the {split} split lacks its images or its labels")
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or not len(labels):
        raise DataError(f"{directory}: {images.shape} images and {labels.shape} labels do not match")
    numbers = tuple(str(label) for label in range(int(labels.max()) + 1))
    return ArrayImages(
        images=images,
        labels=labels.astype(np.int64),
        classes=classes or numbers,
        named=classes is not None,
    )


def _split_directory(directory: Path, split: str) -> Path:
    for name in ("train",) if split == "train" else ("val", "test"):
        if (directory / name).is_dir():
            return directory / name
    raise DataError(
        f"{directory}: no folder for the {split} split",
        hint="an ImageFolder data set has train/CLASS/IMAGE and val/CLASS/IMAGE",
    )
