"""What the tests of the V2 protocol share: a server, images, and the logits that they have to get."""

import io
from collections.abc import Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
from numpy.typing import NDArray
from PIL import Image

from lct_deploy.bundle import open_bundle
from lct_deploy.preprocessing import decode
from lct_deploy.runtime import RuntimeOptions, open_bundled
from lct_deploy.sample import load_sample
from tests.serving import Server

HEADER = "Inference-Header-Content-Length"
SIDE = 28  # of the demo's images
PIXELS = SIDE * SIDE * 3
INFER = "/v2/models/demo/infer"


ADMIN_KEY = "admin-0123456789abcdef"
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}


@contextmanager
def serving(*arguments: object, **settings: object) -> Generator[str]:
    """The URL of a server in a process of its own, which has to stop cleanly and without a traceback."""
    with Server(*arguments, admin_keys=ADMIN_KEY, **settings) as server:
        yield server.url


@dataclass(frozen=True)
class Expected:
    """The answers that the bundle itself gives, without a server."""

    images: NDArray[np.uint8]
    logits: NDArray[np.float32]
    labels: tuple[str, ...]


@cache
def expected(path: Path, count: int = 5) -> Expected:
    bundle = open_bundle(path)
    preprocessing = bundle.manifest.input.preprocessing
    images = np.stack([decode(encoded(i), preprocessing) for i in range(count)])
    with closing(open_bundled(bundle, "onnxruntime", RuntimeOptions())) as runtime:
        return Expected(images, runtime.infer(images), bundle.manifest.labels)


def encoded(index: int = 0, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(load_sample().images[index]).save(stream, kind)
    return stream.getvalue()


def tensor(images: NDArray[np.uint8], **other: Any) -> dict[str, Any]:
    """The input of a request, in JSON unless `other` says so."""
    data = {} if "parameters" in other else {"data": images.reshape(-1).tolist()}
    return {"name": "image", "shape": list(images.shape), "datatype": "UINT8", **data, **other}


def document(*inputs: dict[str, Any], **other: Any) -> dict[str, Any]:
    return {"inputs": list(inputs), **other}


def with_blob(request: dict[str, Any], blob: bytes) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a request whose tensor follows it."""
    text = orjson.dumps(request)
    return text + blob, {HEADER: str(len(text))}


def blob_of(*elements: bytes) -> bytes:
    return b"".join(len(element).to_bytes(4, "little") + element for element in elements)


def ask(http: httpx.Client, request: object, path: str = INFER, **options: Any) -> httpx.Response:
    return http.post(path, content=orjson.dumps(request), **options)


def logits_of(answer: httpx.Response) -> NDArray[np.float32]:
    """The logits in an answer, wherever they are."""
    assert answer.status_code == 200, answer.text
    size = answer.headers.get(HEADER)
    output = orjson.loads(answer.content[: int(size)] if size else answer.content)["outputs"][0]
    assert output["name"] == "logits"
    assert output["datatype"] == "FP32"
    if size is None:
        return np.array(output["data"], np.float32).reshape(output["shape"])
    blob = answer.content[int(size) :]
    assert output["parameters"] == {"binary_data_size": len(blob)}
    return np.frombuffer(blob, "<f4").reshape(output["shape"])


def assert_error(answer: httpx.Response, status: int, text: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()
    assert set(error) == {"error"}
    assert text in error["error"]
