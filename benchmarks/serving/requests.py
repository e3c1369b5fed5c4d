"""Whole HTTP requests, prepared before anything is timed: photographs, forms with one, tensors."""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from lct_deploy.errors import UsageError

JSON_LENGTH = "Inference-Header-Content-Length"  # of the JSON before the tensors, in the V2 protocol
_BOUNDARY = "lct-deploy-benchmark"


@dataclass(frozen=True, kw_only=True)
class Body:
    """What a request carries, and how it is declared."""

    content: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A server, and the requests that it gets in turn."""

    host: str
    port: int
    requests: tuple[bytes, ...]


def target(url: str, bodies: Sequence[Body]) -> Target:
    """Raises UsageError for a URL that is not http://HOST[:PORT]/PATH."""
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port or 80
    except ValueError as error:
        raise UsageError(f"{url}: {error}") from error
    if parts.scheme != "http" or not host:
        raise UsageError(f"{url!r} is not a URL such as http://127.0.0.1:8000/v1/classify")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(host=host, port=port, requests=tuple(_request(parts.netloc, path, b) for b in bodies))


def _request(host: str, path: str, body: Body) -> bytes:
    headers = {"Host": host, **body.headers, "Content-Length": str(len(body.content))}
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode() + body.content


def raw(image: bytes, kind: str = "image/jpeg") -> Body:
    """An encoded image, and nothing else."""
    return Body(content=image, headers={"Content-Type": kind})


def form(image: bytes, name: str) -> Body:
    """A form with one file, as browsers send it."""
    head = (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="photo.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    content = head.encode() + image + f"\r\n--{_BOUNDARY}--\r\n".encode()
    return Body(content=content, headers={"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"})


def tensor(images: NDArray[np.uint8], *, name: str = "image", output: str = "logits") -> Body:
    """An inference request of the V2 protocol: JSON, then the bytes of the tensor; so the answer too."""
    return _inference(np.ascontiguousarray(images).tobytes(), "UINT8", images.shape, name, output)


def raw_tensor(images: NDArray[np.uint8]) -> Body:
    """The bytes of the model's one input and nothing else; the answer is JSON."""
    return Body(
        content=np.ascontiguousarray(images).tobytes(),
        headers={"Content-Type": "application/octet-stream", JSON_LENGTH: "0"},
    )


def file_tensor(image: bytes, *, name: str = "image", output: str = "logits") -> Body:
    """An inference request of the V2 protocol with an encoded image."""
    return _inference(struct.pack("<I", len(image)) + image, "BYTES", (1,), name, output)


def _inference(blob: bytes, datatype: str, shape: Sequence[int], name: str, output: str) -> Body:
    described = {
        "inputs": [
            {
                "name": name,
                "shape": list(shape),
                "datatype": datatype,
                "parameters": {"binary_data_size": len(blob)},
            }
        ],
        "outputs": [{"name": output, "parameters": {"binary_data": True}}],
    }
    head = json.dumps(described, separators=(",", ":")).encode()
    headers = {"Content-Type": "application/octet-stream", JSON_LENGTH: str(len(head))}
    return Body(content=head + blob, headers=headers)
