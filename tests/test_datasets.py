"""Data sets on disk: IDX files and class folders, whole, damaged and mismatched."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lct_deploy.datasets import ArrayImages, FolderImages, list_images, load_dataset, read_idx
from lct_deploy.errors import DataError

IMAGES = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
LABELS = np.array([3, 0, 1, 2, 3], np.uint8)


def idx(array: NDArray[np.uint8]) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(directory: Path, split: str, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
    directory.mkdir(exist_ok=True)
    (directory / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
    (directory / f"{split}-labels-idx1-ubyte").write_bytes(idx(labels))


def touch_image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)
    return path


# ---- IDX files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("array", [IMAGES, LABELS, np.zeros((0, 4, 4), np.uint8)])
def test_idx_files_are_read_plain_and_gzipped(tmp_path: Path, array: NDArray[np.uint8]) -> None:
    plain, zipped = tmp_path / "x-ubyte", tmp_path / "x-ubyte.gz"
    plain.write_bytes(idx(array))
    zipped.write_bytes(gzip.compress(idx(array)))
    for path in (plain, zipped):
        values = read_idx(path)
        assert values.dtype == np.uint8
        np.testing.assert_array_equal(values, array)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an IDX file"),
        (b"\0\0\x08", "not an IDX file"),
        (b"\x89PNG\r\n\x1a\n", "not an IDX file"),
        (b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", "not an IDX file of unsigned bytes"),
        (b"\0\0\x08\x64" + b"\0\0\0\x01" * 100 + b"x", "up to 4 dimensions"),
        (b"\0\0\x08\x03\0\0\0\x05\0\0\0\x04", "truncated in its header"),
        (idx(IMAGES)[:-1], r"holds 59 bytes of data, its header says \(5, 4, 3\)"),
        (idx(IMAGES) + b"x", "holds 61 bytes"),
        (b"\0\0\x08\x03" + b"\x80\0\0\0" * 2 + b"\0\0\0\x04", "holds 0 bytes"),
    ],
)
def test_damaged_idx_files_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "t10k-images-idx3-ubyte"
    path.write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("kept", [0, 5, 30, -9, -1])
def test_truncated_gzip_files_are_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(idx(IMAGES))[:kept])
    with pytest.raises(DataError, match=str(path)):
        read_idx(path)


def test_gzip_files_that_are_none_or_damaged_or_absent_are_refused(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(idx(IMAGES)))
    packed[20] ^= 0xFF
    plain, damaged = tmp_path / "plain.gz", tmp_path / "damaged.gz"
    plain.write_bytes(idx(IMAGES))
    damaged.write_bytes(packed)
    for path in (plain, damaged, tmp_path / "absent.gz", tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            read_idx(path)


def test_a_folder_of_idx_files_is_a_data_set(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", IMAGES, LABELS)
    write_idx(tmp_path, "t10k", IMAGES[:2], LABELS[:2])
    train, test = (load_dataset(str(tmp_path), split) for split in ("train", "test"))
    assert isinstance(train, ArrayImages)
    assert isinstance(test, ArrayImages)
    np.testing.assert_array_equal(train.images, IMAGES)
    np.testing.assert_array_equal(train.labels, LABELS)
    assert train.labels.dtype == np.int64
    assert train.classes == ("0", "1", "2", "3")
    assert (len(train), len(test)) == (5, 2)


@pytest.mark.parametrize(
    ("images", "labels"),
    [(IMAGES, LABELS[:4]), (IMAGES[:0], LABELS[:0]), (LABELS, LABELS), (IMAGES, IMAGES)],
)
def test_images_and_labels_must_belong_together(
    tmp_path: Path, images: NDArray[np.uint8], labels: NDArray[np.uint8]
) -> None:
    write_idx(tmp_path, "train", images, labels)
    with pytest.raises(DataError, match="do not match"):
        load_dataset(str(tmp_path), "train")


def test_images_without_labels_are_refused(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", IMAGES, LABELS)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="the train split lacks its images or its labels"):
        load_dataset(str(tmp_path), "train")


# ---- class folders ---------------------------------------------------------------------------------


def test_classes_are_the_sorted_folders_and_files_may_be_nested(tmp_path: Path) -> None:
    names = ["b/2.png", "b/1.jpg", "a/deep/er/x.webp", "a/y.PNG", "c/z.jpeg"]
    for name in names:
        touch_image(tmp_path / "train" / name)
    (tmp_path / "train" / "a" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / "labels.csv").write_text("not a class")
    images = load_dataset(str(tmp_path), "train")
    assert isinstance(images, FolderImages)
    assert images.classes == ("a", "b", "c")
    relative = [str(path.relative_to(tmp_path / "train")) for path in images.paths]
    assert relative == ["a/deep/er/x.webp", "a/y.PNG", "b/1.jpg", "b/2.png", "c/z.jpeg"]
    assert images.labels.tolist() == [0, 0, 1, 1, 2]
    assert len(images) == 5


@pytest.mark.parametrize("folder", ["val", "test"])
def test_the_test_split_is_val_or_test(tmp_path: Path, folder: str) -> None:
    path = touch_image(tmp_path / folder / "a" / "x.png")
    images = load_dataset(str(tmp_path), "test")
    assert isinstance(images, FolderImages)
    assert images.paths == (path,)


def test_a_class_that_one_split_lacks_is_seen_in_its_classes(tmp_path: Path) -> None:
    for name in ("train/a/1.png", "train/b/1.png", "val/b/1.png"):
        touch_image(tmp_path / name)
    train, test = (load_dataset(str(tmp_path), split) for split in ("train", "test"))
    assert (train.classes, test.classes) == (("a", "b"), ("b",))


def test_a_class_without_images_is_refused(tmp_path: Path) -> None:
    touch_image(tmp_path / "train" / "a" / "x.png")
    (tmp_path / "train" / "b").mkdir()
    (tmp_path / "train" / "b" / "x.gif").write_bytes(b"GIF89a")
    with pytest.raises(DataError, match="train/b: the class has no JPEG, PNG or WebP image"):
        load_dataset(str(tmp_path), "train")


def test_a_missing_split_is_named(tmp_path: Path) -> None:
    touch_image(tmp_path / "train" / "a" / "x.png")
    with pytest.raises(DataError, match="no folder for the test split") as caught:
        load_dataset(str(tmp_path), "test")
    assert caught.value.hint == "an ImageFolder data set has train/CLASS/IMAGE and val/CLASS/IMAGE"


def test_a_split_without_class_folders_is_refused(tmp_path: Path) -> None:
    touch_image(tmp_path / "train" / "x.png")
    with pytest.raises(DataError, match="neither IDX files nor one folder per class"):
        load_dataset(str(tmp_path), "train")


def test_a_source_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    file = touch_image(tmp_path / "x.png")
    for source in (tmp_path / "absent", file):
        with pytest.raises(DataError, match="no such directory"):
            load_dataset(str(source), "train")


def test_list_images_is_sorted_and_takes_files_of_image_suffixes_only(tmp_path: Path) -> None:
    expected = [touch_image(tmp_path / name) for name in ("a/2.png", "a/b/1.jpeg", "c.JPG", "d.webp")]
    touch_image(tmp_path / "e.bmp")
    (tmp_path / "folder.png").mkdir()
    assert list_images(tmp_path) == sorted(expected)
    assert list_images(tmp_path / "folder.png") == []
