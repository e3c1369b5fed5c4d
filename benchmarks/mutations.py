"""Requests that are nearly right: image files and V2 bodies, damaged in ways that reach deep.

Everything is drawn from the generator that is passed in, so that a case is repeated by its seed.
"""

import base64
import gzip
import io
import json
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any
from urllib.parse import quote

from PIL import Image

from lct_deploy.sample import load_sample

LENGTH_HEADER = "Inference-Header-Content-Length"
MEDIA_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
_SAMPLES = 8
_NUMBERS = (0, 1, 2, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 1.5, 1e308, 2**31, 2**53, 2**63 - 1, -(2**63), 2**64 - 1, "", "0", "image",
    "logits", "\u0000", "😀", "x" * 1000, [], [[]], [0], [None], {}, {"": {}}, {"name": "image"},
)  # fmt: skip
_NAMES = ("", "triton_x", "shared_memory_region", "timeout", "data", "shape")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One request, and which mutation made it."""

    mutation: str
    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """An image as a client has it."""

    format: str
    data: bytes


@dataclass(frozen=True, kw_only=True)
class Target:
    """The model that V2 requests are for."""

    name: str
    version: str
    input: str
    height: int
    width: int


def image_files() -> list[ImageFile]:
    """Sound files of every format and many kinds."""
    files: list[ImageFile] = []
    for index, pixels in enumerate(load_sample().images[:_SAMPLES]):
        image = Image.fromarray(pixels).convert("RGB").resize((40 + 7 * index, 61 - 5 * index))
        for format_, mode, options in _KINDS:
            stream = io.BytesIO()
            image.convert(mode).save(stream, format_, **options)
            files.append(ImageFile(format=format_, data=stream.getvalue()))
    return files


_KINDS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("JPEG", "RGB", {}),
    ("JPEG", "L", {"progressive": True}),
    ("JPEG", "CMYK", {"quality": 30}),
    ("JPEG", "RGB", {"progressive": True, "subsampling": 2, "exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"}),
    ("PNG", "RGB", {}),
    ("PNG", "RGBA", {}),
    ("PNG", "P", {"transparency": 3}),
    ("PNG", "1", {}),
    ("PNG", "LA", {"dpi": (72, 72)}),
    ("WEBP", "RGB", {}),
    ("WEBP", "RGBA", {"lossless": True}),
)


# ---- bytes -----------------------------------------------------------------------------------------


def _flip(random: Random, data: bytearray) -> None:
    for _ in range(random.randint(1, 8)):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _overwrite(random: Random, data: bytearray) -> None:
    at = random.randrange(len(data))
    data[at : at + 16] = random.randbytes(random.randint(1, 16))


def _number(random: Random, data: bytearray) -> None:
    """A count or a size at the edge of its type, in either byte order."""
    at = random.randrange(len(data))
    form = random.choice(("<H", ">H", "<I", ">I", "B"))
    value = random.choice(_NUMBERS) % (1 << (8 * struct.calcsize(form)))
    data[at : at + struct.calcsize(form)] = struct.pack(form, value)


def _truncate(random: Random, data: bytearray) -> None:
    del data[random.randrange(len(data)) :]


def _delete(random: Random, data: bytearray) -> None:
    at = random.randrange(len(data))
    del data[at : at + random.randint(1, 64)]


def _insert(random: Random, data: bytearray) -> None:
    at = random.randrange(len(data) + 1)
    data[at:at] = random.choice((random.randbytes(random.randint(1, 64)), bytes(random.randint(1, 4096))))


def _repeat(random: Random, data: bytearray) -> None:
    start = random.randrange(len(data))
    part = data[start : start + random.randint(1, 256)]
    data[start:start] = part * random.randint(1, 20)


_BYTES: tuple[Callable[[Random, bytearray], None], ...] = (
    _flip, _overwrite, _number, _truncate, _delete, _insert, _repeat,
)  # fmt: skip


def _mutate_bytes(random: Random, data: bytes) -> tuple[str, bytes]:
    changed = bytearray(data)
    name = ""
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        if changed:
            mutate = random.choice(_BYTES)
            mutate(random, changed)
            name = mutate.__name__.strip("_")
    return name, bytes(changed)


# ---- images ----------------------------------------------------------------------------------------


def mutate_image(random: Random, files: Sequence[ImageFile]) -> Case:
    """A damaged file for /v1/classify: alone, or in a form beside a sound one."""
    file = random.choice(files)
    name, data = random.choice((_damage, _damage_sealed, _splice))(random, file, files)
    path = f"/v1/classify?top_k={random.choice((1, 3, 5, 1000))}"
    if random.random() < 0.1:
        return _form(random, name, path, [data, random.choice(files).data])
    media = MEDIA_TYPES[file.format if random.random() < 0.95 else random.choice(list(MEDIA_TYPES))]
    return Case(mutation=name, path=path, body=data, headers={"Content-Type": media})


def _damage(random: Random, file: ImageFile, files: Sequence[ImageFile]) -> tuple[str, bytes]:
    return _mutate_bytes(random, file.data)


def _damage_sealed(random: Random, file: ImageFile, files: Sequence[ImageFile]) -> tuple[str, bytes]:
    """Damage behind which checksums and lengths are right again, so that it is not found at the gate."""
    name, data = _mutate_bytes(random, file.data)
    if file.format == "PNG":
        return f"{name}_sealed", _seal_png(data)
    if file.format == "WEBP":
        return f"{name}_sealed", data[:4] + struct.pack("<I", max(0, len(data) - 8)) + data[8:]
    return f"{name}_sealed", b"\xff\xd8\xff" + data[3:] + b"\xff\xd9"


def _splice(random: Random, file: ImageFile, files: Sequence[ImageFile]) -> tuple[str, bytes]:
    """The head of one file and the tail of another."""
    other = random.choice(files).data
    head, tail = random.randrange(len(file.data)), random.randrange(len(other))
    return "splice", file.data[:head] + other[tail:]


def _seal_png(data: bytes) -> bytes:
    sealed, at = bytearray(data), 8
    while at + 12 <= len(sealed):
        length = int.from_bytes(sealed[at : at + 4], "big")
        end = at + 8 + length
        if end + 4 > len(sealed):
            break
        sealed[end : end + 4] = zlib.crc32(sealed[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(sealed)


def _form(random: Random, name: str, path: str, files: Sequence[bytes]) -> Case:
    boundary = f"b{random.randrange(10**9)}"
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{i}"\r\n\r\n'.encode()
        + data
        + b"\r\n"
        for i, data in enumerate(files)
    ]
    body = b"".join(parts) + f"--{boundary}--\r\n".encode()
    if random.random() < 0.3:
        _, body = _mutate_bytes(random, body)
        name = f"{name}_form"
    media = f"multipart/form-data; boundary={boundary}"
    return Case(mutation=name, path=path, body=body, headers={"Content-Type": media})


# ---- V2 requests -----------------------------------------------------------------------------------


@dataclass
class _Request:
    """A V2 request before it becomes bytes."""

    document: dict[str, Any] | None  # None: the body is a raw tensor
    blob: bytes


def mutate_request(random: Random, target: Target, files: Sequence[ImageFile]) -> Case:
    """A V2 inference request that is wrong in its document, its bytes, its lengths or its coding."""
    request = _sound_request(random, target, files)
    name = ""
    if request.document is not None and random.random() < 0.6:
        name = _mutate_document(random, request.document)
    body, headers = _encode(request)
    if not name or random.random() < 0.2:
        what, body = _mutate_bytes(random, body)
        name = f"{name}_{what}".strip("_")
    if random.random() < 0.15:
        name = f"{name}_length"
        headers = {
            LENGTH_HEADER: random.choice(("0", "1", str(len(body)), str(len(body) + 1), "-1", "x", ""))
        }
    if random.random() < 0.15:
        name = f"{name}_coding"
        body, headers["Content-Encoding"] = _mutate_coding(random, body)
    headers["Accept-Encoding"] = random.choice(("identity", "gzip", "deflate;q=0.5", "*", ";q=,"))
    version = random.choice(("", f"/versions/{target.version}"))
    return Case(
        mutation=name, path=f"/v2/models/{quote(target.name)}{version}/infer", body=body, headers=headers
    )


def _sound_request(random: Random, target: Target, files: Sequence[ImageFile]) -> _Request:
    rows = random.choice((1, 1, 2, 3))
    pixels = random.randbytes(rows * target.height * target.width * 3)
    tensor: dict[str, Any] = {"name": target.input, "datatype": "UINT8"}
    tensor["shape"] = [rows, target.height, target.width, 3]
    blob = b""
    match random.choice(("flat", "blob", "blob", "files", "base64", "raw")):
        case "flat":
            tensor["data"] = list(pixels)
        case "blob":
            blob = pixels
        case "raw":
            return _Request(None, pixels[: len(pixels) // rows])
        case form:
            chosen = [random.choice(files).data for _ in range(rows)]
            tensor |= {"datatype": "BYTES", "shape": [rows]}
            if form == "files":
                blob = b"".join(struct.pack("<I", len(data)) + data for data in chosen)
            else:
                tensor["data"] = [base64.b64encode(data).decode() for data in chosen]
    if blob:
        tensor["parameters"] = {"binary_data_size": len(blob)}
    document: dict[str, Any] = {"id": str(random.randrange(1000)), "inputs": [tensor]}
    document["parameters"] = {"binary_data_output": random.random() < 0.5, "priority": 0}
    if random.random() < 0.5:
        parameters = {"classification": random.randint(0, 20), "binary_data": random.random() < 0.5}
        document["outputs"] = [{"name": "logits", "parameters": parameters}]
    return _Request(document, blob)


def _encode(request: _Request) -> tuple[bytes, dict[str, str]]:
    if request.document is None:
        return request.blob, {LENGTH_HEADER: "0"}
    text = json.dumps(request.document, ensure_ascii=False).encode()
    return text + request.blob, {LENGTH_HEADER: str(len(text))} if request.blob else {}


def _mutate_document(random: Random, document: dict[str, Any]) -> str:
    """Change one member somewhere: another value, gone, twice, or under another name."""
    places = list(_places(document))
    holder, key = random.choice(places)
    what = random.choice(("value", "value", "delete", "double", "rename", "other"))
    if what == "value":
        holder[key] = random.choice(_VALUES)
    elif what == "delete":
        del holder[key]
    elif what == "other":
        other, its_key = random.choice(places)
        holder[key] = json.loads(json.dumps(other[its_key]))
    elif isinstance(holder, list):
        holder.insert(key, holder[key])
    elif what == "double":
        holder[key] = [holder[key], holder[key]]
    else:
        holder[random.choice(("", "triton_x", "shared_memory_region", "timeout", "data", "shape"))] = holder[
            key
        ]
    return f"document_{what}"


def _places(node: Any) -> list[tuple[Any, Any]]:
    """Holder and key of every member, but only a few of a long list's."""
    keys = list(node) if isinstance(node, dict) else list(range(min(len(node), 5)))
    found = [(node, key) for key in keys]
    for key in keys:
        if isinstance(node[key], dict | list):
            found += _places(node[key])
    return found


def _mutate_coding(random: Random, body: bytes) -> tuple[bytes, str]:
    """Compressed, soundly or not; or not at all, whatever is said."""
    coding = random.choice(("gzip", "deflate", "br", "identity", "gzip, deflate", ""))
    packed = gzip.compress(body, 1, mtime=0) if coding == "gzip" else zlib.compress(body, 1)
    match random.choice(("sound", "damaged", "plain", "bomb")):
        case "sound":
            return packed, coding
        case "damaged":
            return _mutate_bytes(random, packed)[1], coding
        case "bomb" if random.random() < 0.02:
            return gzip.compress(bytes(100 << 20), 9, mtime=0), "gzip"
        case _:
            return body, coding
