"""Requests read and answers written, without a server: round trips, orders, numbers at the edges."""

import asyncio
import base64
import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from server.problems import Problem
from server.v2.codings import accepted_coding, compressed, decompressed
from server.v2.request import Encoded, InferRequest, RequestedOutput, Takes, read_request
from server.v2.response import classify, write_answer
from tests.v2 import blob_of, document, tensor, with_blob

TAKES = Takes(input="image", height=2, width=3, max_rows=4, max_json_values=10**8)
NOTHING = np.zeros((1, 2, 3, 3), np.uint8)

images = st.integers(1, 4).flatmap(
    lambda count: st.binary(min_size=count * 18, max_size=count * 18).map(
        lambda data: np.frombuffer(data, np.uint8).reshape(count, 2, 3, 3)
    )
)


def read(request: dict[str, Any], blob: bytes | None = None) -> InferRequest:
    if blob is None:
        return read_request(orjson.dumps(request), None, TAKES)
    body, headers = with_blob(request, blob)
    return read_request(body, next(iter(headers.values())), TAKES)


def pixels(request: InferRequest) -> NDArray[np.uint8]:
    assert not isinstance(request.images, Encoded)
    return request.images


def files(request: InferRequest) -> list[bytes]:
    assert isinstance(request.images, Encoded)
    return [bytes(file) for file in request.images.files]


T = TypeVar("T")


def unless_refused(work: Callable[[], T], *statuses: int) -> T | None:
    """What `work` gives, or None where it raises a Problem of one of these statuses."""
    try:
        return work()
    except Problem as problem:
        if problem.status_code in statuses:
            return None
        raise


@given(images)
def test_the_three_spellings_of_a_tensor_are_the_same(array: NDArray[np.uint8]) -> None:
    flat = read(document(tensor(array)))
    nested = read(document(tensor(array, data=array.tolist())))
    blob = read(document(tensor(array, parameters={"binary_data_size": array.nbytes})), array.tobytes())
    for request in (flat, nested, blob):
        assert pixels(request).dtype == np.uint8
        np.testing.assert_array_equal(pixels(request), array)


def test_a_blob_is_not_copied() -> None:
    body, headers = with_blob(document(tensor(NOTHING, parameters={"binary_data_size": 18})), bytes(18))
    request = read_request(body, next(iter(headers.values())), TAKES)
    assert np.shares_memory(pixels(request), np.frombuffer(body, np.uint8))


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=4))
def test_files_in_a_blob_and_in_json_are_the_same(elements: list[bytes]) -> None:
    item = {"name": "image", "datatype": "BYTES", "shape": [len(elements)]}
    texts = [base64.b64encode(element).decode() for element in elements]
    blob = blob_of(*elements)
    assert files(read(document({**item, "data": texts}))) == elements
    assert files(read(document({**item, "parameters": {"binary_data_size": len(blob)}}), blob)) == elements


@given(st.binary(max_size=60))
def test_any_blob_of_files_is_read_or_refused(blob: bytes) -> None:
    item = {
        "name": "image",
        "datatype": "BYTES",
        "shape": [2],
        "parameters": {"binary_data_size": len(blob)},
    }
    elements = unless_refused(lambda: files(read(document(item), blob)), 400)
    assert elements is None or blob_of(*elements) == blob


scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
)


@given(anything)
def test_any_document_is_read_or_refused(value: Any) -> None:
    with pytest.raises(Problem) as caught:
        read_request(orjson.dumps(value), None, TAKES)
    assert caught.value.status_code == 400


@given(st.sampled_from(["shape", "datatype", "data", "parameters", "name"]), anything)
def test_any_member_of_the_input_is_read_or_refused(name: str, value: Any) -> None:
    request = unless_refused(lambda: read(document({**tensor(NOTHING), name: value})), 400)
    assert request is None or pixels(request).shape == NOTHING.shape


@given(st.sampled_from(["id", "outputs", "parameters", "inputs"]), anything)
def test_any_member_of_the_request_is_read_or_refused(name: str, value: Any) -> None:
    request = unless_refused(lambda: read({**document(tensor(NOTHING)), name: value}), 400)
    assert request is None or pixels(request).shape == NOTHING.shape


@given(st.binary(max_size=80), st.none() | st.integers(-1, 90).map(str) | st.text(max_size=4))
def test_any_bytes_are_read_or_refused(body: bytes, header: str | None) -> None:
    request = unless_refused(lambda: read_request(body, header, TAKES), 400)
    assert (request is not None) == ((header or "").strip() == "0" and len(body) == 18)


@pytest.mark.parametrize(
    ("filler", "text"),
    [
        (b"[],", "over 10036 arrays"),
        (b"[[[[[]]]]],", "over 10036 arrays"),
        (b"{},", "over 10000 members or objects"),
        (b'{"a":0},', "over 10000 members or objects"),
    ],
)
def test_json_that_unfolds_to_much_is_not_read(filler: bytes, text: str) -> None:
    body = b'{"inputs":[' + filler * (1_000_000 // len(filler)) + b"0]}"
    for request, header in ((body, None), (body + b"[" * 99, str(len(body)))):
        with pytest.raises(Problem) as caught:
            read_request(request, header, TAKES)
        assert text in caught.value.detail
        assert caught.value.status_code == 400


def test_a_member_with_very_many_names_is_not_read() -> None:
    body = orjson.dumps({"parameters": {str(i): i for i in range(20_000)}})
    with pytest.raises(Problem, match="members or objects"):
        read_request(body, None, TAKES)


def test_as_many_pixels_as_a_request_may_hold_nested() -> None:
    takes = Takes(input="image", height=64, width=64, max_rows=16, max_json_values=10**6)
    array = np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), dtype=np.uint8)
    body = orjson.dumps(document(tensor(array, data=array.tolist())))
    assert gc.isenabled()
    np.testing.assert_array_equal(pixels(read_request(body, None, takes)), array)
    assert gc.isenabled()


def test_what_follows_the_json_is_not_searched_for_brackets() -> None:
    takes = Takes(input="image", height=256, width=256, max_rows=1, max_json_values=10**6)
    array = np.full((1, 256, 256, 3), ord("["), np.uint8)
    padded = document(tensor(array, parameters={"binary_data_size": array.nbytes}), id="x" * (1 << 17))
    body, headers = with_blob(padded, array.tobytes())
    assert len(pixels(read_request(body, next(iter(headers.values())), takes))) == 1


def test_times_are_microseconds() -> None:
    def timeout(**parameters: Any) -> float | None:
        return read(document(tensor(NOTHING), parameters=parameters)).timeout

    assert timeout(timeout=1_500_000) == 1.5
    assert timeout(timeout=0) is None
    assert timeout() is None


# ---- answers ---------------------------------------------------------------------------------------


def answer(logits: Any, output: RequestedOutput, labels: tuple[str, ...] = ("a", "b", "c")) -> Any:
    request = InferRequest(id=None, images=NOTHING, output=output)
    written = write_answer(request, "m", "1", np.array(logits, np.float32), labels)
    return orjson.loads(written.body[: written.json_size])["outputs"][0], written


def test_json_has_all_digits_of_a_float32() -> None:
    logits = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    output, _ = answer(logits, RequestedOutput(binary=False))
    np.testing.assert_array_equal(np.array(output["data"], np.float32).reshape(7, 3), logits)


def test_numbers_that_json_does_not_have_are_null() -> None:
    output, _ = answer([[np.nan, np.inf, 1]], RequestedOutput(binary=False))
    assert output["data"] == [None, None, 1.0]


def test_a_blob_has_every_bit() -> None:
    logits = np.array([[np.nan, -np.inf, -0.0]], np.float32)
    _, written = answer(logits, RequestedOutput(binary=True))
    assert written.body[written.json_size :] == logits.tobytes()


def test_logits_of_any_layout() -> None:
    logits = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    output, _ = answer(logits, RequestedOutput(binary=False))
    assert output["data"] == [0, 1, 2, 3, 4, 5]
    _, written = answer(logits[:, ::-1], RequestedOutput(binary=True))
    assert np.frombuffer(written.body[written.json_size :], "<f4").tolist() == [2, 1, 0, 5, 4, 3]


def test_classes_are_ordered_and_ties_go_to_the_lower_index() -> None:
    logits = np.array([[1, 3, 3], [0.5, -7, 0.25]], np.float32)
    assert classify(logits, ("a", "b", ""), 3) == [
        ["3.000000:1:b", "3.000000:2", "1.000000:0:a"],
        ["0.500000:0:a", "0.250000:2", "-7.000000:1:b"],
    ]
    assert classify(logits, ("a", "b:c", "č"), 1) == [["3.000000:1:b:c"], ["0.500000:0:a"]]


def test_classes_of_logits_that_are_no_numbers() -> None:
    logits = np.array([[np.nan, -np.inf, np.inf]], np.float32)
    assert classify(logits, ("a", "b", "c"), 3) == [["inf:2:c", "-inf:1:b", "nan:0:a"]]


@given(st.integers(1, 20))
def test_no_more_classes_than_the_model_has(k: int) -> None:
    output, _ = answer([[1, 2, 3], [3, 2, 1]], RequestedOutput(binary=False, classes=k))
    assert output["shape"] == [2, min(k, 3)]
    assert len(output["data"]) == 2 * min(k, 3)


# ---- codings ---------------------------------------------------------------------------------------


@given(st.text(max_size=40))
def test_any_wish_for_a_coding_is_understood_somehow(accept: str) -> None:
    assert accepted_coding(accept) in ("gzip", "deflate", None)


@given(st.binary(max_size=200), st.sampled_from(["gzip", "deflate"]))
def test_what_is_compressed_comes_back(data: bytes, coding: Any) -> None:
    async def there_and_back() -> bytes:
        with ThreadPoolExecutor(1) as executor:
            return await decompressed(await compressed(data, coding, executor), coding, 200, executor)

    assert asyncio.run(there_and_back()) == data


@given(st.binary(max_size=60), st.sampled_from(["gzip", "deflate"]))
def test_any_bytes_are_decompressed_or_refused(data: bytes, coding: str) -> None:
    async def back() -> bytes:
        with ThreadPoolExecutor(1) as executor:
            return await decompressed(data, coding, 50, executor)

    result = unless_refused(lambda: asyncio.run(back()), 400, 413)
    assert result is None or len(result) <= 50


def test_large_answers_are_compressed_beside_the_event_loop() -> None:
    data = np.random.default_rng(0).integers(0, 9, 1 << 20, dtype=np.uint8).tobytes()

    async def there_and_back() -> bytes:
        with ThreadPoolExecutor(1) as executor:
            small = await compressed(data, "gzip", executor)
            assert len(small) < len(data)
            return await decompressed(small, "gzip", len(data), executor)

    assert asyncio.run(there_and_back()) == data
