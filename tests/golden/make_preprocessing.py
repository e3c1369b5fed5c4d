"""Makes the encoded images in `images/` and what evaluation must give for them.

    python -m tests.golden.make_preprocessing

`evaluate` is torchvision's ImageNet evaluation on PIL images, written down literally from its
documentation; nothing here imports lct_deploy. The files are committed: run this only to add a case,
and look at what else changes (another Pillow may encode and decode JPEG and WebP differently, and
before version 13 it gave other pixels for tall images made smaller: here, 33x257 to 28).
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HERE = Path(__file__).parent
IMAGES = HERE / "images"
EXPECTED = HERE / "preprocessing.json"
ARRAYS = HERE / "preprocessing.npz"

CONFIGURATIONS = [
    (256, 224, "bilinear"),
    (232, 224, "bicubic"),
    (225, 225, "bilinear"),
    (257, 224, "bilinear"),
    (28, 28, "bilinear"),
]
FILTERS = ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
# Kept whole, to show where an array differs; of the others only the SHA-256.
WHOLE = {
    "rgb_227x341.png-256-224-bilinear",
    "progressive.jpg-256-224-bilinear",
    "rgb_3x1999.png-232-224-bicubic",
}
TOO_LARGE = 50_000_000  # pixels after resizing that are not worth computing


def evaluate(image: Image.Image, resize: int, crop: int, interpolation: str) -> NDArray[np.uint8]:
    """(crop, crop, 3) uint8: convert to RGB, resize the short side, crop the centre."""
    image = image.convert("RGB")
    width, height = resized_size(image, resize)
    if width * height > TOO_LARGE:
        return evaluate(middle_of_a_line(image, resize, crop), resize, crop, interpolation)
    image = image.resize((width, height), Image.Resampling[interpolation.upper()])
    left, top = centre(width, crop), centre(height, crop)
    return np.asarray(image.crop((left, top, left + crop, top + crop)))


def resized_size(image: Image.Image, resize: int) -> tuple[int, int]:
    width, height = image.size
    if width <= height:
        return resize, int(resize * height / width)
    return int(resize * width / height), resize


def centre(length: int, crop: int) -> int:
    return int(round((length - crop) / 2.0))


def middle_of_a_line(image: Image.Image, resize: int, crop: int) -> Image.Image:
    """The middle 16 pixels of an image that is one pixel thin, which hold the crop.

    Every resized pixel is computed as in the whole line: the scale is 1 / resize for both, the strip
    begins at a whole pixel, and its ends are further from the crop than any filter reaches.
    """
    length = max(image.size)
    first = length // 2 - 8
    assert min(image.size) == 1
    assert centre(length * resize, crop) == first * resize + centre(16 * resize, crop)
    if image.width == 1:
        return image.crop((0, first, 1, first + 16))
    return image.crop((first, 0, first + 16, 1))


def picture(width: int, height: int) -> NDArray[np.uint8]:
    """Gradients, checks and single-pixel stripes: much to get wrong, little to store."""
    y, x = np.mgrid[0:height, 0:width]
    red = 255 * x // max(width - 1, 1)
    green = 255 * y // max(height - 1, 1)
    blue = 255 * ((x // 9 + y // 7) % 2)
    red = np.where(y % 40 < 8, 255 * (x % 2), red)
    green = np.where(x % 50 < 6, 255 * (y % 2), green)
    return np.stack([red, green, blue], axis=2).astype(np.uint8)


def rgb(width: int, height: int) -> Image.Image:
    return Image.fromarray(picture(width, height))


def with_alpha(image: Image.Image) -> Image.Image:
    """Alpha that runs from 0 to 255 over the width: blending instead of dropping it would show."""
    alpha = np.linspace(0, 255, image.width).astype(np.uint8)
    image.putalpha(Image.fromarray(np.tile(alpha, (image.height, 1))))
    return image


def write_images() -> None:
    IMAGES.mkdir(exist_ok=True)
    sizes = [(227, 341), (500, 333), (33, 257), (256, 256), (225, 225), (300, 224)]
    sizes += [(1, 1), (1, 2000), (2000, 1), (3, 1999)]
    for width, height in sizes:
        save(rgb(width, height), f"rgb_{width}x{height}.png")
    write_png_modes()
    write_lossy()


def write_png_modes() -> None:
    image = rgb(301, 200)
    save(image.convert("L"), "grey.png")
    save(with_alpha(image.convert("L")), "grey_alpha.png")
    save(with_alpha(image.copy()), "rgba.png")
    save(image, "colour_key.png", transparency=(255, 0, 255))
    save(image.convert("1"), "bilevel.png")
    palette = image.quantize(64)
    save(palette, "palette.png")
    save(palette, "palette_alpha.png", transparency=bytes(range(0, 256, 4)))
    save(palette, "palette_key.png", transparency=3)
    save(image.quantize(7), "palette_4_bits.png", bits=4)
    save(image, "animated.png", save_all=True, append_images=[Image.new("RGB", image.size)])


def write_lossy() -> None:
    image = rgb(293, 211)
    save(image, "baseline.jpg")
    save(image, "full_chroma.jpg", subsampling="4:4:4")
    save(image, "progressive.jpg", progressive=True)
    save(image.convert("L"), "grey.jpg")
    save(image.convert("CMYK"), "cmyk.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90° to show": ignored, the stored pixels count
    save(image, "orientation_6.jpg", exif=exif)
    save(image, "lossy.webp")
    save(with_alpha(image.copy()), "alpha.webp", lossless=True, exact=True)
    save(image, "animated.webp", save_all=True, append_images=[Image.new("RGB", image.size)], lossless=True)


def save(image: Image.Image, name: str, **options: Any) -> None:
    image.save(IMAGES / name, **options)


def write_expected() -> None:
    expected: list[dict[str, Any]] = []
    arrays: dict[str, NDArray[np.uint8]] = {}
    for file in sorted(IMAGES.iterdir()):
        filters = [(40, 33, name) for name in FILTERS] if file.name == "rgb_227x341.png" else []
        for configuration in CONFIGURATIONS + filters:
            with Image.open(file) as image:
                array = evaluate(image, *configuration)
            key = "-".join(map(str, (file.name, *configuration)))
            expected.append({"case": key, "sha256": hashlib.sha256(array.tobytes()).hexdigest()})
            if key in WHOLE or len(array) < 64:
                arrays[key] = array
    EXPECTED.write_text(json.dumps(expected, indent=1) + "\n")
    np.savez_compressed(ARRAYS, allow_pickle=False, **arrays)


if __name__ == "__main__":
    write_images()
    write_expected()
