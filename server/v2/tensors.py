"""The elements of tensors, from JSON and from blobs: little-endian, row-major, unpadded."""

import base64
import math
import struct
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.v2.errors import bad
from server.v2.fields import shown

_LENGTH = struct.Struct("<I")  # before each element of a BYTES tensor


def uint8_from_json(data: list[Any], shape: Sequence[int], where: str) -> NDArray[np.uint8]:
    """The tensor of a flat or a nested list of whole numbers; raises a Problem of 400 for other content."""
    values = _flat(data, shape, where)
    if set(map(type, values)) != {int}:
        index = next(i for i, value in enumerate(values) if type(value) is not int)
        raise bad(f"{where}element {index} has to be a whole number, not {shown(values[index])}")
    try:
        elements = bytes(values)
    except ValueError:
        index = next(i for i, value in enumerate(values) if not 0 <= value <= 255)
        raise bad(f"{where}element {index} is {values[index]}; UINT8 goes from 0 to 255") from None
    return np.frombuffer(elements, np.uint8).reshape(shape)


def uint8_from_blob(blob: memoryview, shape: Sequence[int], where: str) -> NDArray[np.uint8]:
    """The tensor that lies in `blob`, without a copy."""
    size = math.prod(shape)
    if len(blob) != size:
        raise bad(f"{where}UINT8 of shape {list(shape)} is {size} bytes, not {len(blob)}")
    return np.frombuffer(blob, np.uint8).reshape(shape)


def bytes_from_json(data: list[Any], shape: Sequence[int], where: str) -> list[bytes]:
    """The elements of a BYTES tensor, of which JSON holds the base64: no image is text."""
    return [_from_base64(text, f"{where}element {i}") for i, text in enumerate(_flat(data, shape, where))]


def bytes_from_blob(blob: memoryview, count: int, where: str) -> list[memoryview]:
    """The `count` elements of a BYTES tensor: of each its length, then its bytes."""
    elements: list[memoryview] = []
    at = 0
    for index in range(count):
        start = at + _LENGTH.size
        at = start + _LENGTH.unpack_from(blob, at)[0] if start <= len(blob) else start
        if at > len(blob):
            raise bad(f"{where}element {index} does not end within the {len(blob)} bytes of the tensor")
        elements.append(blob[start:at])
    if at != len(blob):
        raise bad(f"{where}{len(blob) - at} bytes follow its {count} elements")
    return elements


def bytes_to_blob(elements: Iterable[bytes]) -> bytes:
    return b"".join(part for element in elements for part in (_LENGTH.pack(len(element)), element))


def _flat(data: list[Any], shape: Sequence[int], where: str) -> list[Any]:
    """All elements in their order; a nested list has to have the tensor's shape exactly."""
    if data and type(data[0]) is list:
        level: list[Any] = [data]
        for axis, size in enumerate(shape):
            if set(map(type, level)) != {list} or set(map(len, level)) != {size}:
                raise bad(f"{where}the nested data do not have {size} elements everywhere along axis {axis}")
            level = list(chain.from_iterable(level))
        return level
    size = math.prod(shape)
    if len(data) != size:
        raise bad(f"{where}shape {list(shape)} has {size} elements, the data {len(data)}")
    return data


def _from_base64(text: object, where: str) -> bytes:
    if type(text) is not str:
        raise bad(f"{where} has to be a string, not {shown(text)}")
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise bad(f"{where} is not base64, in which JSON holds an image: {error}") from error
