"""Bytes that are no image, damaged images and images over the limits: refused, and never worse."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lct_deploy.errors import ImageError, ImageTooLargeError
from lct_deploy.preprocessing import Preprocessing, decode, load_image
from tests.golden.make_preprocessing import IMAGES, rgb

SMALL = Preprocessing(resize=28, crop=28)


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def declared_png(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it has this size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


ENCODED = {
    "PNG": encode(rgb(61, 47), "PNG"),
    "JPEG": encode(
        rgb(61, 47), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x1a\x01\x05\0\x01\0\0\0\x1a\0\0\0"
    ),
    "WEBP": encode(rgb(61, 47), "WEBP", lossless=True),
    "lossy WEBP": encode(rgb(61, 47), "WEBP"),
}


# ---- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"hello", b"<svg/>", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF"]
)
def test_bytes_that_are_no_image_are_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"empty|not an image"):
        decode(data, SMALL)


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize("kept", [0.02, 0.1, 0.3, 0.5, 0.8, 0.95])
def test_truncated_images_are_refused(name: str, kept: float) -> None:
    data = ENCODED[name]
    with pytest.raises(ImageError, match=r"damaged|not an image"):
        decode(data[: int(len(data) * kept)], SMALL)


@pytest.mark.parametrize("file_format", ["GIF", "BMP", "TIFF", "PPM", "ICO"])
def test_other_formats_are_refused(file_format: str) -> None:
    with pytest.raises(ImageError, match="not an image in a supported format") as caught:
        decode(encode(rgb(40, 40), file_format), SMALL)
    assert caught.value.hint == "send JPEG, PNG or WebP"


@pytest.mark.parametrize(
    ("width", "height"),
    [(1, 50_000_001), (10_000, 6_000), (10_000, 10_000), (100_000, 100_000), (1, 60_000_000)],
)
def test_headers_over_the_limit_are_refused(width: int, height: int) -> None:
    """Also where Pillow itself would warn (89 megapixels) or refuse (179)."""
    with pytest.raises(ImageTooLargeError, match="over the limit of 50 megapixels"):
        decode(declared_png(width, height), SMALL)


def test_a_header_at_the_limit_is_read_on() -> None:
    with pytest.raises(ImageError, match="damaged image"):
        decode(declared_png(10_000, 5_000), SMALL)


def test_progressive_images_of_very_many_scans_are_refused() -> None:
    """A scan of no more than 75 bytes makes the decoder pass over every pixel once more."""
    data = encode(rgb(61, 47).convert("L"), "JPEG", progressive=True)
    start, end = data.rindex(b"\xff\xda"), len(data) - 2
    few, many = (data[:end] + times * data[start:end] + data[end:] for times in (10, 100))
    assert decode(few, SMALL).shape == (28, 28, 3)
    with pytest.raises(ImageError, match="more than 100 scans"):
        decode(many, SMALL)


def test_wide_pixels_are_refused() -> None:
    wide = Image.fromarray(np.full((30, 30), 1000, np.uint16))
    with pytest.raises(ImageError, match="more than 8 bits a channel") as caught:
        decode(encode(wide, "PNG"), SMALL)
    assert caught.value.hint == "convert the image to 8 bits a channel"


def test_errors_of_files_name_the_path(tmp_path: Path) -> None:
    file, large = tmp_path / "note.png", tmp_path / "large.png"
    file.write_text("no image")
    large.write_bytes(declared_png(10_000, 6_000))
    for path in (file, large, tmp_path, tmp_path / "absent.png", file / "below.png", Path("/proc/self/mem")):
        with pytest.raises(ImageError) as caught:
            load_image(path, SMALL)
        assert str(caught.value).startswith(f"{path}: ")
        assert isinstance(caught.value, ImageTooLargeError) == (path == large)


# ---- damaged bytes ---------------------------------------------------------------------------------


def decodes_or_is_refused(data: bytes) -> None:
    try:
        array = decode(data, SMALL)
    except ImageError:
        return
    assert (array.shape, array.dtype) == ((28, 28, 3), np.uint8)


CHANGES = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(ENCODED)), CHANGES)
def test_damaged_bytes_decode_or_are_refused(name: str, changes: list[tuple[float, int]]) -> None:
    data = bytearray(ENCODED[name])
    for position, value in changes:
        data[int(position * len(data))] = value
    decodes_or_is_refused(bytes(data))


PNG_CHUNKS = [
    b"PLTE",
    b"tRNS",
    b"acTL",
    b"fcTL",
    b"iCCP",
    b"eXIf",
    b"zTXt",
    b"iTXt",
    b"pHYs",
    b"gAMA",
    b"IHDR",
]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(PNG_CHUNKS), st.binary(max_size=40), st.sampled_from(["L", "P", "RGB", "RGBA"]))
def test_png_chunks_of_any_content_decode_or_are_refused(name: bytes, content: bytes, mode: str) -> None:
    """With a valid checksum, past which random damage does not get."""
    data = encode(rgb(20, 20).convert(mode), "PNG")
    decodes_or_is_refused(data[:33] + chunk(name, content) + data[33:])


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0xE0, 0xEF),
    st.sampled_from([b"", b"Exif\0\0II*\0", b"MPF\0II*\0", b"Adobe"]),
    st.binary(max_size=60),
)
def test_jpeg_segments_of_any_content_decode_or_are_refused(marker: int, head: bytes, content: bytes) -> None:
    segment = struct.pack(">BBH", 0xFF, marker, len(head + content) + 2) + head + content
    data = ENCODED["JPEG"]
    decodes_or_is_refused(data[:2] + segment + data[2:])


def test_damaged_metadata_neither_refuse_an_image_nor_reach_the_log(tmp_path: Path) -> None:
    """In a process of its own, because pytest turns every warning into an error."""
    broken = {"jpeg": ENCODED["JPEG"], "palette": (IMAGES / "palette_alpha.png").read_bytes()}
    png = ENCODED["PNG"]
    broken["apng"] = png[:33] + chunk(b"acTL", bytes(8)) + png[33:]
    for name, data in broken.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "z_large").write_bytes(declared_png(10_000, 10_000))
    code = """
import sys
from pathlib import Path
from lct_deploy.preprocessing import Preprocessing, load_image
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        print(path.name, load_image(path, Preprocessing()).shape)
    except Exception as error:
        print(path.name, type(error).__name__)
"""
    for options in ([], ["-W", "error"]):
        command = [sys.executable, *options, "-c", code, str(tmp_path)]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        images = [f"{name} (224, 224, 3)" for name in sorted(broken)]
        assert run.stdout.splitlines() == [*images, "z_large ImageTooLargeError"]
        assert run.stderr == ""
