"""How the routes appear in the documentation, while they read and write their bodies by themselves."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from server.v2.request import HEADER
from server.v2.schemas import Failure

OfModel = Callable[[Request, str, str | None], Coroutine[Any, Any, Response]]

LATEST = "/v2/models/{model}"
NAMED = "/v2/models/{model}/versions/{version}"
INFER = (f"{LATEST}/infer", f"{NAMED}/infer")
BINARY: dict[str, Any] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
LENGTH_HEADER: dict[str, Any] = {
    "name": HEADER,
    "in": "header",
    "required": False,
    "schema": {"type": "integer", "minimum": 0},
    "description": "How many bytes of the body are JSON, where blobs follow it; 0: the body is one image.",
}
FAILURES = {
    400: "The request is malformed.",
    401: "An API key is needed.",
    403: "Administration is off.",
    404: "No such model or version.",
    408: "The body did not come in time.",
    413: "The body or an image is over the size limits.",
    415: "The body's Content-Encoding is neither gzip nor deflate.",
    503: "Too busy, or the model cannot run now; Retry-After says when to come back.",
    504: "The deadline was over before the answer.",
}


def add_model_route(router: APIRouter, suffix: str, handle: OfModel, **options: Any) -> None:
    """Two routes to `handle`: of a model's latest version, and of a version that is named."""

    async def latest(request: Request, model: str) -> Response:
        return await handle(request, model, None)

    async def named(request: Request, model: str, version: str) -> Response:
        return await handle(request, model, version)

    shared: dict[str, Any] = {"name": handle.__name__, "description": handle.__doc__, **options}
    router.add_api_route(f"{LATEST}{suffix}", latest, **shared)
    router.add_api_route(f"{NAMED}{suffix}", named, **shared)


def responses(
    answer: Any, *statuses: int, content: dict[str, Any] | None = None
) -> dict[int | str, dict[str, Any]]:
    """An answer of type `answer`, or of another `content`, and failures of these statuses."""
    success: dict[str, Any] = {"model": answer, **({"content": content} if content else {})}
    failures = {status: {"model": Failure, "description": FAILURES[status]} for status in statuses}
    return {200: success, **failures, "default": {"model": Failure, "description": "Any other failure."}}


def request_body(model: type[BaseModel], *, blobs: bool = False, required: bool = False) -> dict[str, Any]:
    """For `openapi_extra`: a body of JSON, or of JSON with blobs behind it."""
    content: dict[str, Any] = {"application/json": {"schema": _inlined(model.model_json_schema())}}
    if blobs:
        content["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
    return {"requestBody": {"required": required, "content": content}}


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema that needs no definitions beside it."""
    definitions: dict[str, Any] = schema.pop("$defs", {})

    def resolve(node: object) -> Any:
        if isinstance(node, list):
            return [resolve(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return resolve(definitions[str(node["$ref"]).rpartition("/")[2]])
        return {key: resolve(value) for key, value in node.items()}

    return resolve(schema)
