"""Training batches: the same for the same seed, every image once, changed only as intended."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from lct_deploy.datasets import ArrayImages, FolderImages, load_image_folder
from lct_deploy.errors import ImageError
from lct_deploy.preprocessing import Preprocessing, load_image, preprocess
from lct_deploy.train.augment import draw_shifts, random_resized_crop, shift_and_flip
from lct_deploy.train.batches import Batches, Share
from lct_deploy.train.files import Unreadable

SIZE = 12
SMALL = Preprocessing(resize=SIZE, crop=SIZE)
COUNT = 23
# From Python 3.12 on, forking a process that has threads, as torch has, is warned of.
FORK = "ignore:.*multi-threaded:DeprecationWarning"


def memory_images() -> ArrayImages:
    pixels = np.random.default_rng(0).integers(1, 256, (COUNT, SIZE, SIZE), dtype=np.uint8)
    labels = np.arange(COUNT, dtype=np.int64)
    return ArrayImages(images=pixels, labels=labels, classes=tuple(map(str, labels)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> FolderImages:
    root = tmp_path_factory.mktemp("folder")
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        path = root / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        width, height = rng.integers(14, 40, 2)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return load_image_folder(root)


def collect(batches: Batches, number: int) -> tuple[Tensor, Tensor]:
    images, labels = zip(*batches.epoch(number), strict=True)
    return torch.cat(images), torch.cat(labels)


def memory(*, augment: bool = True, seed: int = 0, batch_size: int = 5) -> Batches:
    return Batches(memory_images(), SMALL, batch_size=batch_size, augment=augment, seed=seed)


def files(folder: FolderImages, *, augment: bool = True, seed: int = 0, workers: int = 0) -> Batches:
    return Batches(folder, SMALL, batch_size=5, augment=augment, seed=seed, workers=workers)


def assert_equal(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> None:
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


# ---- images in memory ------------------------------------------------------------------------------


def test_batches_are_uint8_rgb_and_the_last_one_is_short() -> None:
    batches = memory()
    shapes = [tuple(images.shape) for images, _ in batches.epoch(0)]
    assert shapes == [(5, SIZE, SIZE, 3)] * 4 + [(3, SIZE, SIZE, 3)]
    assert len(batches) == 5
    images, labels = next(batches.epoch(0))
    assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
    assert torch.equal(images[..., 0], images[..., 2])


def test_the_same_seed_and_epoch_give_the_same_batches() -> None:
    torch.manual_seed(1)
    first = collect(memory(seed=4), 2)
    torch.manual_seed(2)  # nothing else that is random has a say
    assert_equal(first, collect(memory(seed=4), 2))


def test_another_epoch_or_seed_gives_other_batches() -> None:
    orders = [collect(memory(seed=seed), epoch)[1].tolist() for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len({tuple(order) for order in orders}) == 6


@pytest.mark.parametrize("augment", [True, False])
@pytest.mark.parametrize("batch_size", [1, 5, 23, 100])
def test_every_image_appears_once_an_epoch(augment: bool, batch_size: int) -> None:
    _, labels = collect(memory(augment=augment, batch_size=batch_size), 3)
    assert sorted(labels.tolist()) == list(range(COUNT))


def test_images_keep_their_labels() -> None:
    """Each image of one grey value, which shifting and flipping leave in its centre."""
    values = np.arange(COUNT, dtype=np.uint8) + 1
    pixels = np.broadcast_to(values[:, None, None], (COUNT, SIZE, SIZE)).copy()
    images = ArrayImages(images=pixels, labels=values.astype(np.int64), classes=("a",))
    batch, labels = collect(Batches(images, SMALL, batch_size=5, augment=True), 0)
    assert torch.equal(batch[:, SIZE // 2, SIZE // 2, 0].long(), labels)


def test_without_augmentation_order_and_pixels_are_those_of_the_data_set() -> None:
    images = memory_images()
    for epoch in (0, 1):
        batch, labels = collect(memory(augment=False), epoch)
        np.testing.assert_array_equal(batch.numpy(), np.repeat(images.images[..., None], 3, axis=3))
        np.testing.assert_array_equal(labels.numpy(), images.labels)


def shifted(image: Tensor, down: int, right: int) -> Tensor:
    """The image moved over a black ground, by indexing one pixel at a time."""
    result = torch.zeros_like(image)
    height, width = image.shape
    for y in range(height):
        for x in range(width):
            if 0 <= y - down < height and 0 <= x - right < width:
                result[y, x] = image[y - down, x - right]
    return result


def moved_at_random(batch: Tensor, generator: torch.Generator) -> Tensor:
    return shift_and_flip(batch, draw_shifts(len(batch), batch.shape[1], generator))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(3, 9), st.integers(3, 9))
def test_augmentation_only_shifts_by_two_pixels_and_flips(seed: int, height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch = torch.randint(1, 256, (4, height, width), generator=generator, dtype=torch.uint8)
    steps = range(-2, 3)
    for before, after in zip(batch, moved_at_random(batch, generator), strict=True):
        moved = [shifted(before, down, right) for down in steps for right in steps]
        assert any(torch.equal(after, x) or torch.equal(after, x.flip(1)) for x in moved)


def test_augmentation_uses_all_shifts_and_both_directions() -> None:
    """Seen at one pixel in the middle of 2000 black images: 25 places, mirrored or not."""
    batch = torch.zeros(2000, 9, 9, dtype=torch.uint8)
    batch[:, 4, 3] = 255
    places = moved_at_random(batch, torch.Generator().manual_seed(0)).nonzero()[:, 1:]
    rows, columns = (counts.tolist() for counts in (places[:, 0].bincount(), places[:, 1].bincount()))
    assert [row > 300 for row in rows] == [False, False, True, True, True, True, True]
    assert [column > 100 for column in columns] == [False] + [True] * 7


@pytest.mark.parametrize("crop", [SIZE - 3, SIZE, 2 * SIZE])
def test_images_are_brought_to_the_networks_size_as_serving_does(crop: int) -> None:
    images, preprocessing = memory_images(), Preprocessing(resize=crop + 1, crop=crop)
    batch, _ = collect(Batches(images, preprocessing, batch_size=5, augment=False), 0)
    served = [preprocess(Image.fromarray(image), preprocessing) for image in images.images]
    np.testing.assert_array_equal(batch.numpy(), served)


# ---- image files -----------------------------------------------------------------------------------


def test_files_without_augmentation_are_the_evaluation_of_each_in_order(folder: FolderImages) -> None:
    images, labels = collect(files(folder, augment=False), 0)
    np.testing.assert_array_equal(images.numpy(), [load_image(path, SMALL) for path in folder.paths])
    np.testing.assert_array_equal(labels.numpy(), folder.labels)


def test_files_are_the_same_for_the_same_seed_and_epoch(folder: FolderImages) -> None:
    torch.manual_seed(1)
    first = collect(files(folder, seed=4), 2)
    torch.manual_seed(2)
    assert_equal(first, collect(files(folder, seed=4), 2))
    assert sorted(first[1].tolist()) == sorted(folder.labels.tolist())


def test_files_differ_between_epochs_and_seeds(folder: FolderImages) -> None:
    runs = [collect(files(folder, seed=seed), epoch)[0] for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    sums = [sorted(images.float().mean(dim=(1, 2, 3)).tolist()) for images in runs]
    assert sums[0] != sums[1]
    assert sums[0] != sums[2]


@pytest.mark.filterwarnings(FORK)
@pytest.mark.parametrize("augment", [True, False])
def test_workers_change_nothing(folder: FolderImages, augment: bool) -> None:
    alone = collect(files(folder, augment=augment, seed=3), 1)
    for workers in (1, 2):
        assert_equal(alone, collect(files(folder, augment=augment, seed=3, workers=workers), 1))


@pytest.mark.filterwarnings(FORK)
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("augment", [True, False])
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, augment: bool, workers: int) -> None:
    """Also where a worker process reads it, without the worker's traceback."""
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "x.png"
    path.write_text("not an image")
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "a" / "y.png")
    batches = files(load_image_folder(tmp_path), augment=augment, workers=workers)
    with pytest.raises(ImageError) as caught:
        collect(batches, 0)
    assert str(caught.value) == f"{path}: not an image in a supported format\nsend JPEG, PNG or WebP"


# ---- shares of a batch ------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "files"])
def source(request: pytest.FixtureRequest, folder: FolderImages) -> ArrayImages | FolderImages:
    return memory_images() if request.param == "memory" else folder


def shared(
    source: ArrayImages | FolderImages, share: Share, *, augment: bool, batch_size: int = 6
) -> Batches:
    return Batches(source, SMALL, batch_size=batch_size, augment=augment, seed=2, share=share)


def test_parts_of_all_processes_are_the_batches_of_one(source: ArrayImages | FolderImages) -> None:
    """Images too: what is cut into parts differently is shuffled and changed alike."""
    whole = list(shared(source, Share(), augment=True).epoch(1))
    first, second = (
        list(shared(source, Share(parts=4, own=own), augment=True).epoch(1))
        for own in (range(2), range(2, 4))
    )
    assert len(whole) == 4
    assert [len(labels) for _, labels in first] == [2, 2, 2, 2, 2, 2]
    for step, batch in enumerate(whole[:3]):
        parts = first[2 * step : 2 * step + 2] + second[2 * step : 2 * step + 2]
        images, labels = zip(*parts, strict=True)
        assert_equal(batch, (torch.cat(images), torch.cat(labels)))


def test_a_last_batch_that_leaves_a_part_one_image_is_not_trained_on() -> None:
    """Of 23 images in sixes the last five: enough for two parts, too few for four."""
    images = memory_images()
    assert len(shared(images, Share(parts=2, own=range(1)), augment=True)) == 4
    assert len(shared(images, Share(parts=4, own=range(1)), augment=True)) == 3
    assert len(shared(images, Share(), augment=True, batch_size=22)) == 1
    assert len(shared(images, Share(), augment=False, batch_size=22)) == 2


def test_every_image_is_tested_once_whatever_the_processes(source: ArrayImages | FolderImages) -> None:
    """Seven of them share batches of six: one has nothing to do."""
    shares = [Share(parts=7, own=range(rank, rank + 1)) for rank in range(7)]
    seen = [labels for s in shares for _, labels in shared(source, s, augment=False).epoch(0)]
    assert sorted(torch.cat(seen).tolist()) == sorted(source.labels.tolist())


def test_an_epoch_is_taken_up_again_at_any_step(source: ArrayImages | FolderImages) -> None:
    batches = shared(source, Share(parts=2, own=range(2)), augment=True)
    for first in (0, 1, 3, 4):
        rest = list(batches.epoch(5, first))
        whole = list(batches.epoch(5))[2 * first :]
        assert len(rest) == len(whole)
        for a, b in zip(rest, whole, strict=True):
            assert_equal(a, b)


@pytest.mark.filterwarnings(FORK)
@pytest.mark.parametrize("workers", [0, 1])
def test_files_that_cannot_be_used_are_left_out_and_noted(tmp_path: Path, workers: int) -> None:
    (tmp_path / "a").mkdir()
    for number in range(6):
        pixels = np.full((20, 20, 3), 40 * number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "a" / f"{number}.png")
    (tmp_path / "a" / "2.png").write_bytes(b"no image")
    (tmp_path / "a" / "4.png").write_bytes((tmp_path / "a" / "3.png").read_bytes()[:40])
    unreadable = Unreadable(limit=0)
    batches = Batches(
        load_image_folder(tmp_path),
        SMALL,
        batch_size=4,
        augment=False,
        workers=workers,
        unreadable=unreadable,
    )
    images, _ = collect(batches, 0)
    assert images[:, 0, 0, 0].tolist() == [0, 40, 120, 200]
    assert sorted(reason.split(": ")[0] for reason in unreadable.reasons) == [
        str(tmp_path / "a" / f"{number}.png") for number in (2, 4)
    ]


def test_a_batch_of_which_nothing_is_left_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.png").write_bytes(b"no image")
    batches = Batches(
        load_image_folder(tmp_path), SMALL, batch_size=1, augment=True, unreadable=Unreadable(limit=9)
    )
    with pytest.raises(ImageError, match=r"no image of a batch can be used: .*0.png: not an image"):
        collect(batches, 0)


@pytest.mark.parametrize(
    "meanwhile",
    ["", "os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)"],
    ids=["at once", "once it is gone"],
)
def test_a_worker_that_dies_is_told_of_with_the_next_batch(folder: FolderImages, meanwhile: str) -> None:
    """In a process of its own: PyTorch tells of it from a signal handler wherever the main thread is."""
    directory = Path(folder.paths[0]).parent.parent
    code = f"""
import multiprocessing, os, time
from pathlib import Path
from lct_deploy.datasets import load_image_folder
from lct_deploy.errors import LctDeployError
from lct_deploy.preprocessing import Preprocessing
from lct_deploy.train.batches import Batches
small = Preprocessing(resize=8, crop=8)
images = load_image_folder(Path({str(directory)!r}))
batches = Batches(images, small, batch_size=1, augment=False, workers=1).epoch(0)
next(batches)
(worker,) = multiprocessing.active_children()
time.sleep(0.5)  # it waits then: killed within a lock that PyTorch has it share, it would leave that locked
worker.kill()
{meanwhile}
try:
    list(batches)
except LctDeployError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert "a process that decodes images has died" in done.stdout, done.stderr


# ---- random-resized crop ---------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 80), st.integers(1, 80), st.integers(1, 33), st.integers(0, 2**31))
def test_a_random_crop_has_its_size_and_is_repeatable(width: int, height: int, size: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    torch.manual_seed(seed)
    first = random_resized_crop(image, size)
    torch.manual_seed(seed)
    assert (first.shape, first.dtype) == ((size, size, 3), np.uint8)
    assert first.flags.writeable  # what torch.from_numpy asks for
    np.testing.assert_array_equal(first, random_resized_crop(image, size))
    own = random_resized_crop(image, size, torch.Generator().manual_seed(seed))
    np.testing.assert_array_equal(first, own)


def test_random_crops_are_regions_of_the_papers_areas_and_shapes() -> None:
    """Measured on an image whose red is x and whose green is y, so that colours tell the region."""
    y, x = np.mgrid[0:256, 0:256].astype(np.uint8)
    image = Image.fromarray(np.stack([x, y, np.zeros_like(x)], axis=2))
    generator = torch.Generator().manual_seed(0)
    measured: list[Any] = []
    for _ in range(400):
        corner = random_resized_crop(image, 64, generator)[[0, -1], [0, -1], :2].astype(int)
        across, down = corner[1] - corner[0]
        measured.append((across < 0, abs(across) * 64 / 63, down * 64 / 63))
    flipped, width, height = np.array(measured, float).T
    area, shape = width * height / 256**2, width / height
    assert 0.4 < flipped.mean() < 0.6
    assert 0.07 < area.min() < 0.12
    assert 0.85 < area.max() < 1.02
    assert 0.70 < shape.min() < 0.80
    assert 1.25 < shape.max() < 1.43
