"""Preprocessing is torchvision's, pixel for pixel, in the memory of the crop."""

import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from lct_deploy import preprocessing as module
from lct_deploy.preprocessing import Preprocessing, decode, evaluation_preprocessing, load_image, preprocess
from tests.golden.make_preprocessing import ARRAYS, EXPECTED, IMAGES, evaluate, picture, rgb

SMALL = Preprocessing(resize=28, crop=28)
DIGESTS: dict[str, str] = {case["case"]: case["sha256"] for case in json.loads(EXPECTED.read_text())}
# Resized only where the crop is, at a scale that float32 rounds.
NEARLY_EQUAL = "rgb_3x1999.png-232-224-bicubic"
INTERPOLATIONS = st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"])
SMOOTH = st.sampled_from(["bilinear", "bicubic", "lanczos", "hamming"])


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


# ---- the golden images -----------------------------------------------------------------------------


def parse(case: str) -> tuple[Path, Preprocessing]:
    name, resize, crop, interpolation = case.rsplit("-", 3)
    fields = {"resize": resize, "crop": crop, "interpolation": interpolation}
    return IMAGES / name, Preprocessing.model_validate(fields)


@pytest.mark.parametrize("case", sorted(DIGESTS.keys() - {NEARLY_EQUAL}))
def test_golden_images_are_equal_bit_for_bit(case: str) -> None:
    path, preprocessing = parse(case)
    actual = load_image(path, preprocessing)
    with np.load(ARRAYS) as arrays:
        if case in arrays:
            np.testing.assert_array_equal(actual, arrays[case])
    assert hashlib.sha256(actual.tobytes()).hexdigest() == DIGESTS[case]


def test_only_the_box_of_an_extreme_image_costs_a_grey_level() -> None:
    path, preprocessing = parse(NEARLY_EQUAL)
    with np.load(ARRAYS) as arrays:
        difference = np.abs(load_image(path, preprocessing).astype(int) - arrays[NEARLY_EQUAL])
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


def test_golden_images_cover_the_modes_that_they_are_named_after() -> None:
    modes = {
        "rgb_227x341.png": "RGB",
        "colour_key.png": "RGB",
        "grey.png": "L",
        "grey_alpha.png": "LA",
        "rgba.png": "RGBA",
        "bilevel.png": "1",
        "palette.png": "P",
        "palette_alpha.png": "P",
        "palette_key.png": "P",
        "palette_4_bits.png": "P",
        "baseline.jpg": "RGB",
        "grey.jpg": "L",
        "cmyk.jpg": "CMYK",
        "lossy.webp": "RGB",
        "alpha.webp": "RGBA",
    }
    stored = {path.name: Image.open(path) for path in IMAGES.iterdir()}
    assert {name: stored[name].mode for name in modes} == modes
    assert isinstance(stored["palette_alpha.png"].info["transparency"], bytes)
    assert stored["palette_key.png"].info["transparency"] == 3
    assert stored["orientation_6.jpg"].getexif()[0x0112] == 6
    assert stored["progressive.jpg"].info["progressive"]
    assert {case.rsplit("-", 3)[0] for case in DIGESTS} == set(stored)
    for image in stored.values():
        image.close()


@pytest.mark.parametrize(("name", "size"), [("animated.png", (301, 200)), ("animated.webp", (293, 211))])
def test_animations_give_their_first_frame(name: str, size: tuple[int, int]) -> None:
    np.testing.assert_array_equal(load_image(IMAGES / name, SMALL), evaluate(rgb(*size), 28, 28, "bilinear"))


# ---- sizes and the crop-only path ------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 40), st.integers(0, 9), INTERPOLATIONS)
def test_every_size_is_resized_and_cropped_by_the_literal_formulas(
    width: int, height: int, crop: int, extra: int, interpolation: Any
) -> None:
    preprocessing = Preprocessing(resize=crop + extra, crop=crop, interpolation=interpolation)
    actual = decode(encode(rgb(width, height), "PNG", compress_level=0), preprocessing)
    assert (actual.shape, actual.dtype) == ((crop, crop, 3), np.uint8)
    np.testing.assert_array_equal(actual, evaluate(rgb(width, height), crop + extra, crop, interpolation))


def crop_only_difference(width: int, height: int, preprocessing: Preprocessing) -> int:
    """The largest difference between resizing the crop alone and the whole, on noise."""
    noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_RESIZED_PIXELS", 0)
        actual = preprocess(Image.fromarray(noise), preprocessing).astype(int)
    settings = preprocessing.resize, preprocessing.crop, preprocessing.interpolation
    return int(np.abs(actual - evaluate(Image.fromarray(noise), *settings)).max())


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 40), st.integers(0, 9))
def test_resizing_only_the_crop_is_within_one_grey_level(
    width: int, height: int, crop: int, extra: int
) -> None:
    preprocessing = Preprocessing(resize=crop + extra, crop=crop)
    assert crop_only_difference(width, height, preprocessing) <= 1


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.integers(1, 400), st.booleans(), st.integers(0, 9), SMOOTH)
def test_enlarging_only_the_crop_is_within_one_grey_level(
    short: int, long: int, tall: bool, extra: int, interpolation: Any
) -> None:
    short, long = sorted((short, long))
    preprocessing = Preprocessing(resize=short + extra, crop=short, interpolation=interpolation)
    width, height = (short, long) if tall else (long, short)
    assert crop_only_difference(width, height, preprocessing) <= 1


@pytest.mark.parametrize("tall", [True, False])
@pytest.mark.parametrize("length", [100_000, 5_000_000])
def test_the_middle_of_a_very_long_line_is_found(length: int, tall: bool) -> None:
    """At 2,500,000 pixels from the edge float32 knows only quarters of a pixel."""
    line = np.random.default_rng(0).integers(0, 256, (length, 1, 3), dtype=np.uint8)
    image = Image.fromarray(line if tall else line.transpose(1, 0, 2))
    expected = evaluate(image, 232, 224, "bicubic").astype(int)
    actual = preprocess(image, Preprocessing(resize=232, crop=224, interpolation="bicubic"))
    assert np.abs(actual - expected).max() <= 1


PEAK = """
import sys
from pathlib import Path
from lct_deploy.errors import ImageTooLargeError
from lct_deploy.preprocessing import Preprocessing, load_image

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))

load_image(Path(sys.argv[1]), Preprocessing())
before = peak()
try:
    load_image(Path(sys.argv[2]), Preprocessing())
except ImageTooLargeError:
    pass
print((peak() - before) // 1024)
"""


def extra_memory(path: Path) -> int:
    """MiB that decoding `path` adds to the peak of a process which has decoded an ordinary image."""
    command = [sys.executable, "-c", PEAK, str(IMAGES / "rgb_227x341.png"), str(path)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("name", ["rgb_1x2000.png", "rgb_2000x1.png", "rgb_3x1999.png"])
def test_extreme_images_need_little_memory(name: str) -> None:
    """Resized as a whole, a line of 2000 pixels is 512,000 rows of 256: half a gigabyte."""
    assert extra_memory(IMAGES / name) < 50


def test_images_over_the_limit_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    Image.new("L", (10_000, 6_000)).save(large)
    assert extra_memory(large) < 50


# ---- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "resize"), [(224, 256), (28, 32), (160, 183), (1, 1), (384, 439)])
def test_evaluation_keeps_seven_eighths(size: int, resize: int) -> None:
    assert evaluation_preprocessing(size) == Preprocessing(resize=resize, crop=size)


@pytest.mark.parametrize(
    "fields",
    [{"resize": 20, "crop": 21}, {"crop": 0}, {"std": (1, 0, 1)}, {"interpolation": "cubic"}, {"size": 3}],
)
def test_settings_that_contradict_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Preprocessing.model_validate(fields)


def test_preprocess_leaves_its_image_as_it_was() -> None:
    image = Image.fromarray(picture(50, 40)).convert("L")
    before = image.copy()
    preprocess(image, SMALL)
    assert image == before
