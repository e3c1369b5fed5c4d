"""From image bytes to the uint8 array that every graph takes; pixel for pixel torchvision's.

torchvision's ImageNet evaluation on PIL images: convert to RGB, resize the short side (antialiased),
crop the centre. Scaling to [0, 1], mean and std happen inside the graph. torchvision leaves the
resizing to Pillow, so equal means with the same Pillow: from version 13 on it takes the two passes of
a tall image that is made smaller in the other order, which moves some pixels by a grey level.

What is done with each kind of file:
    greyscale, palette   converted to RGB (one grey value in all three channels; palette looked up)
    alpha channel        dropped, not blended (PIL's and torchvision's conversion)
    CMYK, YCCK           converted to RGB by PIL, no colour profile applied
    EXIF orientation     ignored, as in torchvision: the stored pixels count
    animation            first frame
    16-bit, 32-bit grey  refused: PIL would clip it to 255
"""

import io
import math
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, model_validator

from lct_deploy.errors import ImageError, ImageTooLargeError

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
Rgb = tuple[float, float, float]

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 50_000_000
# Scans of a progressive JPEG, each of which costs a pass over all pixels; encoders write about ten.
MAX_SCANS = 100
# Past this many pixels after resizing, only the region that the crop keeps is resized.
MAX_RESIZED_PIXELS = 4_000_000
_SUPPORT = 3  # source pixels on either side that the widest filter, Lanczos, looks at
_WIDE_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")

IMAGENET_MEAN: Rgb = (0.485, 0.456, 0.406)
IMAGENET_STD: Rgb = (0.229, 0.224, 0.225)

# Pillow warns of damaged metadata (EXIF, MPO, APNG) and of large headers. The metadata are ignored here
# and the size is checked below: no file that someone sends may write to the log.
warnings.filterwarnings("ignore", module=r"PIL\.")


class Preprocessing(BaseModel):
    """What stands between an image and the network; sizes in pixels, mean and std for [0, 1]."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    resize: int = Field(default=256, ge=1)
    crop: int = Field(default=224, ge=1)
    interpolation: Interpolation = "bilinear"
    mean: Rgb = IMAGENET_MEAN
    std: Rgb = IMAGENET_STD

    @model_validator(mode="after")
    def _check(self) -> "Preprocessing":
        if self.crop > self.resize:
            raise ValueError(f"crop {self.crop} is larger than resize {self.resize}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")
        return self


def evaluation_preprocessing(size: int) -> Preprocessing:
    """ImageNet's evaluation at another size: the crop keeps 7/8 of the resized short side."""
    return Preprocessing(resize=max(size, round(size * 256 / 224)), crop=size)


@dataclass(frozen=True, kw_only=True)
class _Geometry:
    """Size after resizing and the corner of the crop, by torchvision's rounding rules."""

    width: int
    height: int
    left: int
    top: int


def load_image(path: Path, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """`decode` for a file; raises ImageError naming the path."""
    return preprocess(load_rgb(path), preprocessing)


def decode(data: bytes, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """The model's input for encoded JPEG, PNG or WebP bytes: (crop, crop, 3) uint8 RGB.

    Raises ImageError for bytes that are not an allowed, complete image within the limits.
    """
    return preprocess(decode_rgb(data), preprocessing)


def load_rgb(path: Path) -> Image.Image:
    """`decode_rgb` for a file; raises ImageError naming the path."""
    try:
        return decode_rgb(path.read_bytes())
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror or error}") from error
    except ImageError as error:
        raise type(error)(f"{path}: {error.message}", hint=error.hint) from error


def decode_rgb(data: bytes) -> Image.Image:
    """All pixels of encoded JPEG, PNG or WebP bytes, as RGB; raises ImageError as `decode` does."""
    return load_pixels(read_header(data))


def read_header(data: bytes) -> Image.Image:
    """An image whose size and kind are known and allowed, none of its pixels decoded yet.

    Raises ImageError for what the header already tells.
    """
    if not data:
        raise ImageError("the image is empty (0 bytes)")
    with _pillow_errors():
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_image(image)
        _check_scans(data)
        return image


def load_pixels(image: Image.Image) -> Image.Image:
    """All pixels of an image from `read_header`, as RGB; raises ImageError for a damaged one."""
    with _pillow_errors(), image:
        image.load()
        # A transparent colour is dropped like an alpha channel; `convert` would warn of it.
        image.info.pop("transparency", None)
        return image if image.mode == "RGB" else image.convert("RGB")


@contextmanager
def _pillow_errors() -> Generator[None]:
    """What Pillow raises, as ImageError."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError("not an image in a supported format", hint="send JPEG, PNG or WebP") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large("the image") from error
    except Exception as error:
        # Pillow's parsers raise nearly anything for damaged files: OSError, SyntaxError, struct.error …
        raise ImageError(f"damaged image: {error or type(error).__name__}") from error


def preprocess(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Convert to RGB, resize the short side, crop the centre: (crop, crop, 3) uint8."""
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    geometry = _geometry(rgb.width, rgb.height, preprocessing)
    filter_ = Image.Resampling[preprocessing.interpolation.upper()]
    crop = preprocessing.crop
    if geometry.width * geometry.height > MAX_RESIZED_PIXELS:
        return np.asarray(_resize_crop_only(rgb, geometry, crop, filter_))
    resized = rgb.resize((geometry.width, geometry.height), filter_)
    box = (geometry.left, geometry.top, geometry.left + crop, geometry.top + crop)
    return np.asarray(resized.crop(box))


def _check_image(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(f"{image.width}x{image.height}")
    if image.mode in _WIDE_MODES:
        raise ImageError(
            f"pixels of mode {image.mode} (more than 8 bits a channel) are not supported",
            hint="convert the image to 8 bits a channel",
        )


def _check_scans(data: bytes) -> None:
    # Compressed pixels never hold a start-of-scan marker; a thumbnail in the metadata may add one.
    if data.startswith(b"\xff\xd8") and _count_pairs(data, 0xFF, 0xDA) > MAX_SCANS:
        raise ImageError(
            f"a progressive JPEG of more than {MAX_SCANS} scans", hint="save it as a baseline JPEG"
        )


def _count_pairs(data: bytes, first: int, second: int) -> int:
    """How often two bytes follow each other; faster than `bytes.count`."""
    values = np.frombuffer(data, np.uint8)
    return int(np.count_nonzero((values[:-1] == first) & (values[1:] == second)))


def _too_large(size: str) -> ImageTooLargeError:
    return ImageTooLargeError(
        f"{size} is over the limit of {MAX_PIXELS // 1_000_000} megapixels",
        hint="scale the image down before sending it",
    )


def _geometry(width: int, height: int, preprocessing: Preprocessing) -> _Geometry:
    short, long = min(width, height), max(width, height)
    resize, crop = preprocessing.resize, preprocessing.crop
    long = int(resize * long / short)
    width, height = (resize, long) if width <= height else (long, resize)
    return _Geometry(
        width=width,
        height=height,
        left=int(round((width - crop) / 2.0)),
        top=int(round((height - crop) / 2.0)),
    )


def _resize_crop_only(
    image: Image.Image, geometry: _Geometry, crop: int, filter_: Image.Resampling
) -> Image.Image:
    """Resize the long side just where the crop keeps it, for images of an extreme aspect ratio.

    Exact where the scale is a power of two; otherwise Pillow's float32 box moves the sampling grid by
    less than 1e-4 pixels, one grey level at most. The horizontal pass comes first, as Pillow does it,
    because the passes round to 8 bits in between: resized at one go, the region is of another shape
    than the whole, and Pillow 13 chooses the order by the shape. It takes the vertical pass first for
    the whole of a tall image that is made smaller: there bicubic and Lanczos, which overshoot, may
    differ by more.
    """
    wide = geometry.width > geometry.height
    left, width = (geometry.left, crop) if wide else (0, geometry.width)
    top, height = (0, geometry.height) if wide else (geometry.top, crop)
    x0, x1, box_left, box_right = _source_span(left, width, image.width, geometry.width)
    y0, y1, box_top, box_bottom = _source_span(top, height, image.height, geometry.height)
    region = image.crop((x0, y0, x1, y1))
    columns = region.resize((width, region.height), filter_, box=(box_left, 0, box_right, region.height))
    resized = columns.resize((width, height), filter_, box=(0, box_top, width, box_bottom))
    x, y = geometry.left - left, geometry.top - top
    return resized.crop((x, y, x + crop, y + crop))


def _source_span(start: int, count: int, source: int, resized: int) -> tuple[int, int, float, float]:
    """Along one axis: the source pixels that `count` resized ones from `start` on are made of.

    First and last + 1 of them with the filter's support, then where the resized ones begin and end,
    counted from the first: float32 keeps its precision only near zero.
    """
    scale = source / resized
    begin, end = start * scale, (start + count) * scale
    margin = _SUPPORT * max(scale, 1.0) + 1
    first, last = max(0, math.floor(begin - margin)), min(source, math.ceil(end + margin))
    return first, last, begin - first, end - first
