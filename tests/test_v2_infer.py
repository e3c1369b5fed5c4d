"""Inference over plain HTTP: every form that a request and an answer can have."""

import base64
import gzip
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.v2 import (
    HEADER,
    INFER,
    PIXELS,
    Expected,
    ask,
    assert_error,
    blob_of,
    document,
    encoded,
    expected,
    logits_of,
    serving,
    tensor,
    with_blob,
)


@pytest.fixture(scope="module")
def http(demo_bundle: Path) -> Generator[httpx.Client]:
    headers = {"Accept-Encoding": "identity"}
    with serving(demo_bundle) as url, httpx.Client(base_url=url, timeout=30, headers=headers) as client:
        yield client


@pytest.fixture(scope="module")
def demo(demo_bundle: Path) -> Expected:
    return expected(demo_bundle)


def assert_logits(answer: httpx.Response, demo: Expected, count: int = 5) -> None:
    np.testing.assert_allclose(logits_of(answer), demo.logits[:count], atol=1e-4)


BINARY = {"parameters": {"binary_data_size": PIXELS}}
FILES = {"name": "image", "datatype": "BYTES", "shape": [2]}


# ---- inputs ----------------------------------------------------------------------------------------


def test_flat_data(http: httpx.Client, demo: Expected) -> None:
    answer = ask(http, document(tensor(demo.images)))
    assert_logits(answer, demo)
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()) == {"model_name", "model_version", "outputs"}


def test_nested_data(http: httpx.Client, demo: Expected) -> None:
    assert_logits(ask(http, document(tensor(demo.images, data=demo.images.tolist()))), demo)


@pytest.mark.parametrize("version", ["", "/versions/1"])
def test_binary_data(http: httpx.Client, demo: Expected, version: str) -> None:
    body, headers = with_blob(document(tensor(demo.images[:1], **BINARY)), demo.images[0].tobytes())
    answer = http.post(f"/v2/models/demo{version}/infer", content=body, headers=headers)
    assert_logits(answer, demo, 1)
    assert answer.headers["content-type"] == "application/json"


def test_a_header_for_a_body_that_is_all_json(http: httpx.Client, demo: Expected) -> None:
    body, headers = with_blob(document(tensor(demo.images)), b"")
    assert_logits(http.post(INFER, content=body, headers=headers), demo)


def test_a_raw_body_is_one_image(http: httpx.Client, demo: Expected) -> None:
    answer = http.post(INFER, content=demo.images[0].tobytes(), headers={HEADER: "0"})
    assert_logits(answer, demo, 1)


def test_files_as_binary_data(http: httpx.Client, demo: Expected) -> None:
    blob = blob_of(encoded(0), encoded(1))
    body, headers = with_blob(document({**FILES, "parameters": {"binary_data_size": len(blob)}}), blob)
    assert_logits(http.post(INFER, content=body, headers=headers), demo, 2)


@pytest.mark.parametrize("shape", [[2], [2, 1]])
def test_files_in_json_are_base64(http: httpx.Client, demo: Expected, shape: list[int]) -> None:
    texts: list[Any] = [base64.b64encode(encoded(i)).decode() for i in range(2)]
    assert_logits(ask(http, document({**FILES, "shape": shape, "data": texts})), demo, 2)
    if len(shape) == 2:
        nested = [[text] for text in texts]
        assert_logits(ask(http, document({**FILES, "shape": shape, "data": nested})), demo, 2)


def test_as_many_images_as_a_request_may_hold(http: httpx.Client, demo: Expected) -> None:
    images = np.repeat(demo.images[:1], 64, axis=0)
    request = document(tensor(images, parameters={"binary_data_size": images.nbytes}))
    body, headers = with_blob(request, images.tobytes())
    logits = logits_of(http.post(INFER, content=body, headers=headers))
    np.testing.assert_allclose(logits, np.repeat(demo.logits[:1], 64, axis=0), atol=1e-4)
    more = np.repeat(demo.images[:1], 65, axis=0)
    request = document(tensor(more, parameters={"binary_data_size": more.nbytes}))
    body, headers = with_blob(request, more.tobytes())
    assert_error(http.post(INFER, content=body, headers=headers), 400, "from 1 to 64 images, not 65")


@pytest.mark.parametrize("content_type", ["application/octet-stream", "text/plain", "", "image/png"])
def test_the_content_type_does_not_matter(http: httpx.Client, demo: Expected, content_type: str) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    assert_logits(ask(http, document(tensor(demo.images)), headers=headers), demo)


# ---- outputs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "outputs", "binary"),
    [
        ({}, None, False),
        ({}, [], False),
        ({"binary_data_output": True}, None, True),
        ({"binary_data_output": False}, None, False),
        ({}, [{"name": "logits"}], False),
        ({"binary_data_output": True}, [{"name": "logits"}], True),
        ({}, [{"name": "logits", "parameters": {"binary_data": True}}], True),
        ({"binary_data_output": True}, [{"name": "logits", "parameters": {"binary_data": False}}], False),
        ({}, [{"name": "logits", "parameters": {"classification": 0}}], False),
    ],
)
def test_where_the_logits_go(
    http: httpx.Client, demo: Expected, parameters: dict[str, Any], outputs: Any, binary: bool
) -> None:
    other = {} if outputs is None else {"outputs": outputs}
    answer = ask(http, document(tensor(demo.images), parameters=parameters, **other))
    assert_logits(answer, demo)
    assert (HEADER in answer.headers) == binary
    kind = "application/octet-stream" if binary else "application/json"
    assert answer.headers["content-type"] == kind


def test_classes_in_json(http: httpx.Client, demo: Expected) -> None:
    wanted = [{"name": "logits", "parameters": {"classification": 2}}]
    output = ask(http, document(tensor(demo.images[:1]), outputs=wanted)).json()["outputs"][0]
    first, second = np.argsort(-demo.logits[0])[:2]
    assert (output["datatype"], output["shape"]) == ("BYTES", [1, 2])
    assert output["data"][0] == f"{demo.logits[0][first]:.6f}:{first}:{demo.labels[first]}"
    assert output["data"][1].endswith(f":{second}:{demo.labels[second]}")


def test_classes_as_binary_data(http: httpx.Client, demo: Expected) -> None:
    wanted = [{"name": "logits", "parameters": {"classification": 1, "binary_data": True}}]
    answer = ask(http, document(tensor(demo.images[:2]), outputs=wanted))
    blob = answer.content[int(answer.headers[HEADER]) :]
    length = int.from_bytes(blob[:4], "little")
    assert blob[4 : 4 + length].decode().endswith(":9:Ankle boot")
    assert blob[8 + length :].decode().endswith(":2:Pullover")


@pytest.mark.parametrize("ticket", ["7", "", "žluťoučký 🐎", "x" * 5000])
def test_the_id_comes_back(http: httpx.Client, demo: Expected, ticket: str) -> None:
    assert ask(http, document(tensor(demo.images), id=ticket)).json()["id"] == ticket


# ---- parameters ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parameters",
    [
        {"mine": "x", "number": 1.5, "yes": True, "none": None},
        {"priority": 0, "timeout": 0},
        {"priority": 18446744073709551615, "timeout": 18446744073709551615},
    ],
)
def test_parameters_that_are_accepted(http: httpx.Client, demo: Expected, parameters: dict[str, Any]) -> None:
    request = document(tensor(demo.images[:1]), parameters=parameters)
    request["inputs"][0]["parameters"] = {"content_type": "np"}
    assert_logits(ask(http, request), demo, 1)


def test_a_deadline_is_kept_while_images_wait_to_be_decoded(http: httpx.Client) -> None:
    blob = blob_of(*[encoded()] * 64)
    request = document(
        {**FILES, "shape": [64], "parameters": {"binary_data_size": len(blob)}}, parameters={"timeout": 1}
    )
    body, headers = with_blob(request, blob)
    assert_error(http.post(INFER, content=body, headers=headers), 504, "deadline")


# ---- codings ---------------------------------------------------------------------------------------


def bare_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(data) + stream.flush()


@pytest.mark.parametrize(
    ("coding", "compress"),
    [
        ("gzip", gzip.compress),
        ("GZIP", gzip.compress),
        ("x-gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", bare_deflate),
        ("identity", bytes),
    ],
)
def test_compressed_requests(http: httpx.Client, demo: Expected, coding: str, compress: Any) -> None:
    body, headers = with_blob(document(tensor(demo.images[:1], **BINARY)), demo.images[0].tobytes())
    headers["Content-Encoding"] = coding
    assert_logits(http.post(INFER, content=compress(body), headers=headers), demo, 1)


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate, br", "gzip"),
        ("gzip;q=0.2, deflate;q=0.8", "deflate"),
        ("GZip ; Q=1", "gzip"),
        ("gzip;q=0, deflate;q=0", None),
        ("br, zstd", None),
        ("identity;q=1, gzip;q=0.5", None),
        ("*", None),
        ("gzip;q=wrong", None),
        ("gzip;level=9", None),
        ("", None),
    ],
)
@pytest.mark.parametrize("binary", [False, True])
def test_compressed_answers(
    http: httpx.Client, demo: Expected, accept: str, coding: str | None, binary: bool
) -> None:
    request = document(tensor(demo.images), parameters={"binary_data_output": binary})
    answer = ask(http, request, headers={"Accept-Encoding": accept})
    assert answer.headers.get("content-encoding") == coding
    assert_logits(answer, demo)  # httpx has decompressed it; the header still tells the length of the JSON


def test_nothing_else_is_compressed(http: httpx.Client) -> None:
    headers = {"Accept-Encoding": "gzip, deflate"}
    for path in ("/v2", "/v2/models/demo", "/v2/models/demo/config", "/v2/models/stats", "/openapi.json"):
        answer = http.get(path, headers=headers)
        assert answer.status_code == 200
        assert "content-encoding" not in answer.headers
    assert "content-encoding" not in http.post("/v2/repository/index", headers=headers).headers
    assert "content-encoding" not in http.post(INFER, headers=headers).headers  # an error
