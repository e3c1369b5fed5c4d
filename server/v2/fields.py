"""Members of a JSON document, each of the type that it has to be."""

from collections.abc import Mapping
from typing import Any, TypeVar

import orjson

from server.v2.errors import bad

T = TypeVar("T")
_KINDS: dict[type[Any], str] = {
    str: "a string",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "an array",
    dict: "an object",
    type(None): "null",
}
_LONGEST = 60


def read_object(data: bytes | memoryview) -> dict[str, Any]:
    """The JSON object that `data` is; raises a Problem of 400 for anything else."""
    if not data:
        raise bad("the body is empty; a JSON object was expected")
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise bad(f"the JSON cannot be read: {error}") from error
    if type(document) is not dict:
        raise bad(f"the JSON has to be an object, not {shown(document)}")
    return document


def optional(holder: Mapping[str, Any], name: str, kind: type[T], where: str = "") -> T | None:
    """The member called `name`; None where it is absent or null."""
    value = holder.get(name)
    if value is None:
        return None
    if type(value) is not kind:  # to isinstance, true is a number
        raise bad(f"{where}{name} has to be {_KINDS[kind]}, not {shown(value)}")
    return value


def required(holder: Mapping[str, Any], name: str, kind: type[T], where: str = "") -> T:
    """As `optional`, but it has to be there."""
    value = optional(holder, name, kind, where)
    if value is None:
        raise bad(f"{where}{name} is missing; it has to be {_KINDS[kind]}")
    return value


def natural(holder: Mapping[str, Any], name: str, where: str = "") -> int | None:
    """A whole number that is not negative."""
    value = optional(holder, name, int, where)
    if value is not None and value < 0:
        raise bad(f"{where}{name} has to be 0 or more, not {value}")
    return value


def read_parameters(holder: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """The `parameters` of a request, an input or an output: names and scalars."""
    parameters = optional(holder, "parameters", dict, where)
    if parameters is None:
        return {}
    for name, value in parameters.items():
        if name.startswith("triton_"):
            raise bad(f"{where}the parameter {shown(name)} is reserved")
        if name.startswith("shared_memory_"):
            raise bad(f"{where}shared memory is not offered here; send the data in the body")
        if isinstance(value, list | dict):
            raise bad(f"{where}the parameter {shown(name)} has to be a scalar, not {shown(value)}")
    return parameters


def shown(value: object) -> str:
    """A value as a message names it: in JSON where it is short."""
    if isinstance(value, list | dict):
        return _KINDS[type(value)]
    text = orjson.dumps(value).decode()
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
