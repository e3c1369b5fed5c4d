"""An inference request, from its bytes: JSON alone, JSON and blobs, or one raw blob."""

import gc
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from server.problems import Problem
from server.v2.errors import bad
from server.v2.fields import natural, optional, read_object, read_parameters, required, shown
from server.v2.tensors import bytes_from_blob, bytes_from_json, uint8_from_blob, uint8_from_json

HEADER = "Inference-Header-Content-Length"
OUTPUT = "logits"
_LARGE = 1 << 16  # bytes of JSON that are worth a second look
_OTHERS = 10_000  # members, objects, and arrays beside those of pixels
_MOST_AXES = 8  # of a shape that is worth a look
_DIGITS = 15  # of a length that could be one; Python does not read very long numbers


class Takes(NamedTuple):
    """What a model takes: its one input, and how many images of what size at once."""

    input: str
    height: int
    width: int
    max_rows: int
    max_json_values: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestedOutput:
    """How the logits are wanted: in JSON or as a blob, all of them or the best classes."""

    binary: bool
    classes: int = 0  # of the classification extension; 0: the logits themselves


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """Images as files, which are still to be decoded."""

    files: Sequence[bytes | memoryview]

    def __len__(self) -> int:
        return len(self.files)


@dataclass(frozen=True, kw_only=True, slots=True)
class InferRequest:
    """A request that is right in itself."""

    id: str | None
    images: NDArray[np.uint8] | Encoded
    output: RequestedOutput
    timeout: float | None = None  # seconds


def read_request(body: bytes, header_length: str | None, takes: Takes) -> InferRequest:
    """The request in `body`, of which `header_length` bytes are JSON, all where it is None.

    Raises a Problem: 413 where the JSON has too many values, else 400, saying what is wrong.
    """
    size = len(body) if header_length is None else _read_length(header_length, len(body))
    view = memoryview(body)
    blob = None if header_length is None else view[size:]
    if blob is not None and size == 0:
        return _read_raw(blob, takes)
    _check_values(body, size, takes)
    if size <= _LARGE:
        return _read_document(read_object(view[:size]), blob, takes)
    _check_members(body, size, takes)
    with _resting_collector():
        return _read_document(read_object(view[:size]), blob, takes)


def _check_values(body: bytes, size: int, takes: Takes) -> None:
    """Refuse JSON that would keep every other request waiting for too long while it is read.

    Commas within strings count too, which is no harm: base64 has none.
    """
    if body.count(b",", 0, size) >= takes.max_json_values:
        raise Problem(
            413,
            f"the JSON has over {takes.max_json_values} values; send tensors as binary data "
            f"({HEADER}), or images as files",
        )


def _check_members(body: bytes, size: int, takes: Takes) -> None:
    """Refuse JSON with more in it than any request has: a small body would take much memory and time.

    Brackets within strings count too, which is no harm: base64 has none.
    """
    arrays = takes.max_rows * (1 + takes.height * (1 + takes.width)) + _OTHERS
    if body.count(b"[", 0, size) > arrays:
        raise bad(
            f"the JSON has over {arrays} arrays, more than the pixels of {takes.max_rows} images nested"
        )
    if max(body.count(b"{", 0, size), body.count(b":", 0, size)) > _OTHERS:
        raise bad(f"the JSON has over {_OTHERS} members or objects")


@contextmanager
def _resting_collector() -> Generator[None]:
    """No garbage collection in here: while millions of lists come into being it would look at them often."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _read_length(header_length: str, body_length: int) -> int:
    text = header_length.strip()
    if not (text.isascii() and text.isdecimal() and len(text) <= _DIGITS):
        raise bad(f"{HEADER} has to be the JSON's length in bytes, not {shown(header_length)}")
    if int(text) > body_length:
        raise bad(f"{HEADER} is {text}, but the body has {body_length} bytes")
    return int(text)


def _read_raw(blob: memoryview, takes: Takes) -> InferRequest:
    """A body without JSON is the one input of the model, of one image."""
    images = uint8_from_blob(blob, (1, takes.height, takes.width, 3), f"input {takes.input}: ")
    return InferRequest(id=None, images=images, output=RequestedOutput(binary=False))


def _read_document(document: dict[str, Any], blob: memoryview | None, takes: Takes) -> InferRequest:
    parameters = read_parameters(document)
    natural(parameters, "priority")  # the queue has one
    microseconds = natural(parameters, "timeout")
    return InferRequest(
        id=optional(document, "id", str),
        images=_read_input(_only_input(document, takes), blob, takes),
        output=_read_outputs(document, parameters),
        timeout=microseconds / 1e6 if microseconds else None,
    )


def _only_input(document: dict[str, Any], takes: Takes) -> dict[str, Any]:
    found: dict[str, Any] | None = None
    for index, item in enumerate(required(document, "inputs", list)):
        if type(item) is not dict:
            raise bad(f"inputs[{index}] has to be an object, not {shown(item)}")
        name = required(item, "name", str, f"inputs[{index}].")
        if name != takes.input:
            raise bad(f"the model has no input {shown(name)}; its input is {takes.input}")
        if found is not None:
            raise bad(f"input {name} is given twice")
        found = item
    if found is None:
        raise bad(f"inputs is empty; the model's input is {takes.input}")
    return found


def _read_input(item: dict[str, Any], blob: memoryview | None, takes: Takes) -> NDArray[np.uint8] | Encoded:
    where = f"input {takes.input}: "
    datatype = required(item, "datatype", str, where)
    shape = _read_shape(item, where)
    data = optional(item, "data", list, where)
    claimed = _claimed_blob(item, blob, data is not None, where)
    if datatype == "UINT8":
        _check_images(shape, takes, where)
        if claimed is not None:
            return uint8_from_blob(claimed, shape, where)
        return uint8_from_json(data or [], shape, where)
    if datatype == "BYTES":
        _check_files(shape, takes, where)
        if claimed is not None:
            return Encoded(files=bytes_from_blob(claimed, shape[0], where))
        return Encoded(files=bytes_from_json(data or [], shape, where))
    raise bad(
        f"{where}the datatype is UINT8 for pixels, BYTES for JPEG, PNG and WebP files; not {shown(datatype)}"
    )


def _claimed_blob(
    item: dict[str, Any], blob: memoryview | None, has_data: bool, where: str
) -> memoryview | None:
    """The blob of an input that is not in JSON."""
    size = natural(read_parameters(item, where), "binary_data_size", where)
    if (size is not None) == has_data:
        has = "both" if has_data else "neither"
        raise bad(f"{where}it has {has} of data and parameters.binary_data_size; it needs one of them")
    if size is not None and blob is None:
        raise bad(f"{where}binary_data_size needs the header {HEADER}")
    follows = 0 if blob is None else len(blob)
    if follows != (size or 0):
        raise bad(f"{where}{follows} bytes follow the JSON, of which binary_data_size claims {size or 0}")
    return None if size is None else blob


def _read_shape(item: dict[str, Any], where: str) -> list[int]:
    shape = required(item, "shape", list, where)
    if len(shape) > _MOST_AXES:
        raise bad(f"{where}the shape has {len(shape)} axes")
    for axis, size in enumerate(shape):
        if type(size) is not int or size < 0:
            raise bad(f"{where}shape[{axis}] has to be a whole number from 0 on, not {shown(size)}")
    return shape


def _check_images(shape: list[int], takes: Takes, where: str) -> None:
    if len(shape) != 4 or shape[1:] != [takes.height, takes.width, 3]:
        wanted = f"[-1, {takes.height}, {takes.width}, 3]"
        raise bad(f"{where}the shape has to be {wanted}, not {shape}")
    _check_rows(shape[0], takes, where)


def _check_files(shape: list[int], takes: Takes, where: str) -> None:
    if len(shape) not in (1, 2) or shape[1:] not in ([], [1]):
        raise bad(f"{where}the shape of BYTES has to be [-1] or [-1, 1], not {shape}")
    _check_rows(shape[0], takes, where)


def _check_rows(rows: int, takes: Takes, where: str) -> None:
    if not 1 <= rows <= takes.max_rows:
        raise bad(f"{where}a request holds from 1 to {takes.max_rows} images, not {rows}")


def _read_outputs(document: dict[str, Any], parameters: dict[str, Any]) -> RequestedOutput:
    binary = optional(parameters, "binary_data_output", bool) or False
    items = optional(document, "outputs", list) or []
    for index, item in enumerate(items[:2]):  # there can be one
        if type(item) is not dict:
            raise bad(f"outputs[{index}] has to be an object, not {shown(item)}")
        name = required(item, "name", str, f"outputs[{index}].")
        if name != OUTPUT:
            raise bad(f"the model has no output {shown(name)}; its output is {OUTPUT}")
    if len(items) > 1:
        raise bad(f"output {OUTPUT} is asked for {len(items)} times")
    return _read_output(items[0], binary) if items else RequestedOutput(binary=binary)


def _read_output(item: dict[str, Any], binary: bool) -> RequestedOutput:
    where = f"output {OUTPUT}: "
    parameters = read_parameters(item, where)
    own = optional(parameters, "binary_data", bool, where)
    classes = natural(parameters, "classification", where)
    return RequestedOutput(binary=binary if own is None else own, classes=classes or 0)
