"""What is refused, with which status, and that the message says what is wrong."""

import base64
import gzip
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest

from tests.test_damaged_images import declared_png
from tests.v2 import (
    HEADER,
    INFER,
    PIXELS,
    ask,
    assert_error,
    blob_of,
    document,
    encoded,
    serving,
    tensor,
    with_blob,
)

IMAGE = np.zeros((1, 28, 28, 3), np.uint8)
FLAT = IMAGE.reshape(-1).tolist()


@pytest.fixture(scope="module")
def http(demo_bundle: Path) -> Generator[httpx.Client]:
    with serving(demo_bundle) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client
        answer = ask(client, document(tensor(IMAGE)))  # after all of that it still serves
        assert answer.status_code == 200


def given(**changes: Any) -> dict[str, Any]:
    """A request whose input is changed; a member set to None is left out."""
    item = {**tensor(IMAGE), **changes}
    return document({name: value for name, value in item.items() if value is not None})


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "the body is empty"),
        (b"{", "the JSON cannot be read"),
        (b"\xff\xfe", "the JSON cannot be read"),
        (b'{"id": "\\ud800"}', "the JSON cannot be read"),
        (b'{"inputs": [NaN]}', "the JSON cannot be read"),
        (b"[" * 50_000, "the JSON cannot be read"),
        (b"[" * 100_000, "the JSON has over 62032 arrays"),
        (b"[]", "has to be an object, not an array"),
        (b"null", "has to be an object, not null"),
        (b'"text"', 'has to be an object, not "text"'),
        (b"{}", "inputs is missing"),
        (b'{"inputs": null}', "inputs is missing"),
        (b'{"inputs": {}}', "inputs has to be an array, not an object"),
        (b'{"inputs": []}', "inputs is empty; the model's input is image"),
        (b'{"inputs": [1]}', "inputs[0] has to be an object, not 1"),
        (b'{"inputs": [{}]}', "inputs[0].name is missing"),
        (b'{"inputs": [{"name": 7}]}', "inputs[0].name has to be a string, not 7"),
        (b'{"inputs": [{"name": "pixels"}]}', 'no input "pixels"; its input is image'),
    ],
)
def test_documents(http: httpx.Client, body: bytes, text: str) -> None:
    assert_error(http.post(INFER, content=body), 400, text)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"shape": None}, "shape is missing"),
        ({"shape": "1,28,28,3"}, "shape has to be an array"),
        ({"shape": []}, "has to be [-1, 28, 28, 3], not []"),
        ({"shape": [28, 28, 3]}, "has to be [-1, 28, 28, 3], not [28, 28, 3]"),
        ({"shape": [1, 3, 28, 28]}, "has to be [-1, 28, 28, 3], not [1, 3, 28, 28]"),
        ({"shape": [1, 28, 28, 3, 1]}, "has to be [-1, 28, 28, 3]"),
        ({"shape": [1] * 1000}, "the shape has 1000 axes"),
        ({"shape": [-1, 28, 28, 3]}, "shape[0] has to be a whole number from 0 on, not -1"),
        ({"shape": [1.0, 28, 28, 3]}, "shape[0] has to be a whole number from 0 on, not 1.0"),
        ({"shape": [True, 28, 28, 3]}, "shape[0] has to be a whole number from 0 on, not true"),
        ({"shape": ["1", 28, 28, 3]}, "shape[0] has to be a whole number"),
        ({"shape": [0, 28, 28, 3]}, "from 1 to 64 images, not 0"),
        ({"shape": [65, 28, 28, 3]}, "from 1 to 64 images, not 65"),
        ({"shape": [2**63, 28, 28, 3]}, "from 1 to 64 images, not 9223372036854775808"),
        ({"shape": [2**32, 2**32, 2**32, 2**32]}, "has to be [-1, 28, 28, 3]"),
        ({"shape": [2, 28, 28, 3]}, "has 4704 elements, the data 2352"),
        ({"datatype": None}, "datatype is missing"),
        ({"datatype": "FP32"}, 'not "FP32"'),
        ({"datatype": "uint8"}, 'not "uint8"'),
        ({"datatype": 8}, "datatype has to be a string"),
        ({"data": None}, "neither of data and parameters.binary_data_size"),
        ({"data": "AAAA"}, "data has to be an array"),
        ({"data": []}, "has 2352 elements, the data 0"),
        ({"data": FLAT[1:]}, "has 2352 elements, the data 2351"),
        ({"data": [*FLAT, 0]}, "has 2352 elements, the data 2353"),
        ({"data": [*FLAT[1:], 256]}, "element 2351 is 256; UINT8 goes from 0 to 255"),
        ({"data": [-1, *FLAT[1:]]}, "element 0 is -1"),
        ({"data": [2**64 - 1, *FLAT[1:]]}, "element 0 is 18446744073709551615"),
        ({"data": [1e300, *FLAT[1:]]}, "element 0 has to be a whole number, not 1e"),
        ({"data": [0.5, *FLAT[1:]]}, "element 0 has to be a whole number, not 0.5"),
        ({"data": [*FLAT[1:], True]}, "element 2351 has to be a whole number, not true"),
        ({"data": ["0", *FLAT[1:]]}, 'element 0 has to be a whole number, not "0"'),
        ({"data": [*FLAT[1:], []]}, "element 2351 has to be a whole number, not an array"),
        ({"data": [*FLAT[1:], None]}, "element 2351 has to be a whole number, not null"),
        ({"data": IMAGE[0].tolist()}, "do not have 1 elements everywhere along axis 0"),
        ({"data": [[[[0, 0]] * 28] * 28]}, "do not have 3 elements everywhere along axis 3"),
        ({"data": [[[[0, 0, 0]] * 28] * 27 + [[[0, 0, 0]] * 27]]}, "28 elements everywhere along axis 2"),
        ({"data": [[0]]}, "28 elements everywhere along axis 1"),
        ({"data": [[[[[0], [0], [0]]] * 28] * 28]}, "has to be a whole number, not an array"),
        ({"parameters": []}, "parameters has to be an object"),
        ({"parameters": {"deep": {}}}, 'the parameter "deep" has to be a scalar'),
        ({"parameters": {"shared_memory_region": "r"}}, "shared memory is not offered"),
        ({"parameters": {"binary_data_size": PIXELS}}, "both of data and parameters.binary_data_size"),
        ({"parameters": {"binary_data_size": PIXELS}, "data": None}, f"needs the header {HEADER}"),
        ({"parameters": {"binary_data_size": -1}, "data": None}, "has to be 0 or more, not -1"),
        ({"parameters": {"binary_data_size": 1.5}, "data": None}, "has to be a whole number, not 1.5"),
    ],
)
def test_inputs(http: httpx.Client, changes: dict[str, Any], text: str) -> None:
    assert_error(ask(http, given(**changes)), 400, text)


def test_numbers_that_json_does_not_have(http: httpx.Client) -> None:
    text = orjson.dumps(given()).replace(b'"data":[0', b'"data":[' + b"9" * 400)
    assert_error(http.post(INFER, content=text), 400, "")
    text = orjson.dumps(given()).replace(b'"data":[0', b'"data":[NaN')
    assert_error(http.post(INFER, content=text), 400, "the JSON cannot be read")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"inputs": [tensor(IMAGE), tensor(IMAGE)]}, "input image is given twice"),
        ({"inputs": [tensor(IMAGE), tensor(IMAGE, name="other")]}, 'no input "other"'),
        ({"id": 7}, "id has to be a string, not 7"),
        ({"outputs": {}}, "outputs has to be an array"),
        ({"outputs": [1]}, "outputs[0] has to be an object"),
        ({"outputs": [{}]}, "outputs[0].name is missing"),
        ({"outputs": [{"name": "scores"}]}, 'no output "scores"; its output is logits'),
        ({"outputs": [{"name": "logits"}, {"name": "scores"}]}, 'no output "scores"'),
        ({"outputs": [{"name": "logits"}] * 3}, "output logits is asked for 3 times"),
        ({"outputs": [{"name": "logits", "parameters": 1}]}, "parameters has to be an object"),
        ({"outputs": [{"name": "logits", "parameters": {"binary_data": 1}}]}, "has to be true or false"),
        ({"outputs": [{"name": "logits", "parameters": {"classification": -1}}]}, "0 or more, not -1"),
        ({"outputs": [{"name": "logits", "parameters": {"classification": True}}]}, "not true"),
        ({"outputs": [{"name": "logits", "parameters": {"shared_memory_region": "r"}}]}, "not offered"),
        ({"parameters": "x"}, "parameters has to be an object"),
        ({"parameters": {"triton_anything": 1}}, 'the parameter "triton_anything" is reserved'),
        ({"parameters": {"list": [1]}}, 'the parameter "list" has to be a scalar'),
        ({"parameters": {"binary_data_output": "yes"}}, "binary_data_output has to be true or false"),
        ({"parameters": {"timeout": -5}}, "timeout has to be 0 or more"),
        ({"parameters": {"timeout": "5"}}, "timeout has to be a whole number"),
        ({"parameters": {"timeout": 1.5}}, "timeout has to be a whole number"),
        ({"parameters": {"priority": -1}}, "priority has to be 0 or more"),
    ],
)
def test_the_rest_of_a_request(http: httpx.Client, changes: dict[str, Any], text: str) -> None:
    assert_error(ask(http, {**given(), **changes}), 400, text)


@pytest.mark.parametrize(
    ("header", "text"),
    [
        ("-1", "has to be the JSON's length in bytes"),
        ("+5", "has to be the JSON's length in bytes"),
        ("1e2", "has to be the JSON's length in bytes"),
        ("", "has to be the JSON's length in bytes"),
        ("²", "has to be the JSON's length in bytes"),
        ("9" * 5000, "has to be the JSON's length in bytes"),
        ("999999", "but the body has"),
        ("3", "the JSON cannot be read"),
        ("0", "is 2352 bytes, not"),
    ],
)
def test_lengths_of_the_json(http: httpx.Client, header: str, text: str) -> None:
    headers = [(HEADER.encode(), header.encode("latin-1"))]
    assert_error(ask(http, given(), headers=headers), 400, text)


@pytest.mark.parametrize(
    ("size", "blob", "text"),
    [
        (PIXELS, b"", f"0 bytes follow the JSON, of which binary_data_size claims {PIXELS}"),
        (PIXELS, bytes(PIXELS - 1), f"{PIXELS - 1} bytes follow the JSON"),
        (PIXELS, bytes(PIXELS + 1), f"{PIXELS + 1} bytes follow the JSON"),
        (PIXELS - 1, bytes(PIXELS - 1), f"is {PIXELS} bytes, not {PIXELS - 1}"),
        (0, b"", f"is {PIXELS} bytes, not 0"),
        (2**62, bytes(PIXELS), "bytes follow the JSON"),
    ],
)
def test_blobs(http: httpx.Client, size: int, blob: bytes, text: str) -> None:
    body, headers = with_blob(given(data=None, parameters={"binary_data_size": size}), blob)
    assert_error(http.post(INFER, content=body, headers=headers), 400, text)


def test_a_blob_that_no_input_claims(http: httpx.Client) -> None:
    body, headers = with_blob(given(), b"more")
    assert_error(http.post(INFER, content=body, headers=headers), 400, "4 bytes follow the JSON, of which")


@pytest.mark.parametrize("size", [0, 1, PIXELS - 1, PIXELS + 1])
def test_raw_bodies_of_another_size(http: httpx.Client, size: int) -> None:
    answer = http.post(INFER, content=bytes(size), headers={HEADER: "0"})
    assert_error(answer, 400, f"is {PIXELS} bytes, not {size}")


# ---- files -----------------------------------------------------------------------------------------


def files(http: httpx.Client, blob: bytes, shape: list[int]) -> httpx.Response:
    item = {
        "name": "image",
        "datatype": "BYTES",
        "shape": shape,
        "parameters": {"binary_data_size": len(blob)},
    }
    body, headers = with_blob(document(item), blob)
    return http.post(INFER, content=body, headers=headers)


@pytest.mark.parametrize(
    ("bad", "status", "text"),
    [
        (b"", 400, "image 1: the image is empty"),
        (b"text", 400, "image 1: not an image in a supported format; send JPEG, PNG or WebP"),
        (encoded()[:100], 400, "image 1: damaged image"),
        (encoded(kind="GIF"), 400, "image 1: not an image"),
        (declared_png(10_000, 6_000), 413, "image 1: 10000x6000 is over the limit of 50 megapixels"),
    ],
)
def test_a_bad_image_is_named(http: httpx.Client, bad: bytes, status: int, text: str) -> None:
    assert_error(files(http, blob_of(encoded(), bad, b"worse"), [3]), status, text)


@pytest.mark.parametrize(
    ("blob", "shape", "text"),
    [
        (b"", [1], "element 0 does not end within the 0 bytes"),
        (b"\x01\x00", [1], "element 0 does not end within the 2 bytes"),
        (b"\xff\xff\xff\xffabc", [1], "element 0 does not end within the 7 bytes"),
        (blob_of(b"a"), [2], "element 1 does not end within the 5 bytes"),
        (blob_of(b"a", b"b"), [1], "5 bytes follow its 1 elements"),
        (blob_of(b"a") + b"x", [1], "1 bytes follow its 1 elements"),
        (blob_of(b"a"), [0], "from 1 to 64 images, not 0"),
        (blob_of(b"a"), [10**9], "from 1 to 64 images"),
        (blob_of(b"a"), [], "shape of BYTES has to be [-1] or [-1, 1], not []"),
        (blob_of(b"a"), [1, 2], "shape of BYTES has to be [-1] or [-1, 1], not [1, 2]"),
        (blob_of(b"a"), [1, 1, 1], "shape of BYTES has to be [-1] or [-1, 1], not [1, 1, 1]"),
    ],
)
def test_files_in_blobs(http: httpx.Client, blob: bytes, shape: list[int], text: str) -> None:
    assert_error(files(http, blob, shape), 400, text)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ([], "has 1 elements, the data 0"),
        (["$$$"], "element 0 is not base64"),
        (["žluť"], "element 0 is not base64"),
        (["QUJD"], "image 0: not an image"),
        ([7], "element 0 has to be a string, not 7"),
        ([[base64.b64encode(encoded()).decode()]], "element 0 has to be a string, not an array"),
    ],
)
def test_files_in_json(http: httpx.Client, data: list[Any], text: str) -> None:
    item = {"name": "image", "datatype": "BYTES", "shape": [1], "data": data}
    assert_error(ask(http, document(item)), 400, text)


def test_json_of_too_many_values_is_413_and_as_a_blob_the_same_pixels_pass(http: httpx.Client) -> None:
    """64 images of 28 pixels are within the limit; the same list ten times over is not read at all."""
    many = np.zeros((64, 28, 28, 3), np.uint8)
    assert ask(http, document(tensor(many))).status_code == 200
    over = {**tensor(many), "data": [0] * 1_500_001}
    assert_error(ask(http, document(over)), 413, "over 1500000 values; send tensors as binary data")


# ---- bodies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_body_that_grows_beyond_the_limit_is_413(http: httpx.Client, coding: str) -> None:
    compress = gzip.compress if coding == "gzip" else zlib.compress
    bomb = compress(bytes(200 << 20))
    assert len(bomb) < 300_000
    answer = http.post(INFER, content=bomb, headers={"Content-Encoding": coding})
    assert_error(answer, 413, "over the limit of 33554432 bytes once decompressed")


@pytest.mark.parametrize(
    ("coding", "body", "status", "text"),
    [
        ("gzip", b"not gzip", 400, "the body is not gzip"),
        ("gzip", b"", 400, "ends before its gzip stream"),
        ("gzip", gzip.compress(b"{}", mtime=0)[:-4], 400, "ends before its gzip stream"),
        ("gzip", gzip.compress(b"{}", mtime=0) * 2, 400, "bytes follow the gzip stream"),
        ("gzip", zlib.compress(b"{}"), 400, "the body is not gzip"),
        ("deflate", b"\xff\xff\xff\xff", 400, "the body is not deflate"),
        ("deflate", zlib.compress(b"{}") + b"x", 400, "1 bytes follow the deflate stream"),
        ("br", b"{}", 415, 'Content-Encoding "br" is not understood; send gzip or deflate'),
        ("gzip, gzip", b"{}", 415, "is not understood"),
        ("gzip", gzip.compress(b"{}", mtime=0), 400, "inputs is missing"),
    ],
)
def test_codings(http: httpx.Client, coding: str, body: bytes, status: int, text: str) -> None:
    answer = http.post(INFER, content=body, headers={"Content-Encoding": coding})
    assert_error(answer, status, text)
    assert (answer.headers.get("accept-encoding") == "gzip, deflate") == (status == 415)


# ---- paths -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        ("POST", "/v2/models/other/infer", 404, "no model 'other'"),
        ("POST", "/v2/models/demo/versions/2/infer", 404, "no version '2'"),
        ("POST", "/v2/models/demo/versions//infer", 404, "Not Found"),
        ("POST", "/v2/models/%F0%9F%90%8E/infer", 404, "no model"),
        ("POST", "/v2/models/%00%ff%0a/infer", 404, "no model"),
        ("GET", INFER, 405, "Method Not Allowed"),
        ("DELETE", "/v2/models/demo", 405, "Method Not Allowed"),
        ("POST", "/v2", 405, "Method Not Allowed"),
        ("GET", "/v2/repository/index", 405, "Method Not Allowed"),
        ("GET", "/v2/models", 404, "Not Found"),
        ("GET", "/v2/models/demo/", 404, "Not Found"),
        ("GET", "/v2/nothing", 404, "Not Found"),
    ],
)
def test_paths(http: httpx.Client, method: str, path: str, status: int, text: str) -> None:
    answer = http.request(method, path)
    assert_error(answer, status, text)
    if status == 405:
        assert answer.headers["allow"]


@pytest.mark.parametrize("path", ["/v2x", "/v1/nothing", "/v1/classify/"])
def test_other_paths_have_problem_documents(http: httpx.Client, path: str) -> None:
    answer = http.get(path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
