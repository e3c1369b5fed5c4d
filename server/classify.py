"""POST /v1/classify: images in, labelled probabilities out."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from lct_deploy.errors import ImageError
from lct_deploy.predictions import Prediction, top_classes
from server.decoding import Decoded, Decoders
from server.engine.client import Inference
from server.lifetimes import deadline_of, while_connected
from server.plain_route import PlainRoute
from server.problems import MEDIA_TYPE, Problem, ProblemDetails, image_failure, image_problem
from server.served import ServedModel
from server.service import Service
from server.uploads import FORM_TYPE, RAW_TYPES, check_type, read_images

MAX_TOP_K = 1000


class ImageFailure(BaseModel):
    """Stands at the place of an image that could not be classified."""

    error: str


class Timing(BaseModel):
    """Milliseconds that the request spent in each stage."""

    decode: float
    queue: float
    compute: float
    total: float


class Classification(BaseModel):
    """One list of predictions per image, in the order of the request."""

    model: str
    version: str
    predictions: list[list[Prediction] | ImageFailure]
    timing_ms: Timing


_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FORM_SCHEMA = {
    "type": "object",
    "required": ["file"],
    "properties": {"file": {"type": "array", "items": {"type": "string", "format": "binary"}}},
}
_BODY: dict[str, Any] = {
    "required": True,
    "content": {**dict.fromkeys(RAW_TYPES, _BINARY), FORM_TYPE: {"schema": _FORM_SCHEMA}},
}
_PARAMETERS: list[dict[str, Any]] = [
    {
        "name": "top_k",
        "in": "query",
        "description": "Classes per image.",
        "schema": {"type": "integer", "minimum": 1, "maximum": MAX_TOP_K, "default": 5},
    },
    {
        "name": "model",
        "in": "query",
        "description": "Which model, where several are served.",
        "schema": {"type": "string"},
    },
]
_PROBLEM = {"content": {MEDIA_TYPE: {"schema": ProblemDetails.model_json_schema()}}}
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The request is malformed, or the model has to be named.", **_PROBLEM},
    401: {"description": "An API key is needed.", **_PROBLEM},
    404: {"description": "No model of this name.", **_PROBLEM},
    408: {"description": "The body did not come in time.", **_PROBLEM},
    413: {"description": "The image is over the size limits.", **_PROBLEM},
    415: {"description": "The body is of a type that is not accepted.", **_PROBLEM},
    422: {"description": "The body is not a complete image.", **_PROBLEM},
    503: {"description": "Too busy, or the model's engine has died; Retry-After says when.", **_PROBLEM},
    504: {"description": "The deadline was over before the answer.", **_PROBLEM},
}


@dataclass(frozen=True)
class Classifications:
    """Answers POST /v1/classify; raises Problems."""

    service: Service

    async def answer(self, request: Request) -> Response:
        """Classify one image (raw body) or several (multipart); a bad one fails alone."""
        started = time.perf_counter()
        service, settings = self.service, self.service.settings
        service.keys.check(request, "infer")
        deadline = deadline_of(request, settings.request_seconds)
        name, k = _read_query(request)
        check_type(request)
        with service.models.find(name) as served:
            async with service.bodies.read(request) as body:
                images = await read_images(request, body, max_images=settings.max_images)
                done = await while_connected(request, _classify(served, images, service.decoders, deadline))
        return _respond(served, done, k, started)


def classify_router(classifications: Classifications) -> APIRouter:
    """The route as FastAPI documents it."""
    router = APIRouter(tags=["classification"], route_class=PlainRoute)
    router.add_api_route(
        "/v1/classify",
        classifications.answer,
        name="classify",
        methods=["POST"],
        response_model=Classification,
        responses=_PROBLEMS,
        openapi_extra={"requestBody": _BODY, "parameters": _PARAMETERS},
    )
    return router


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """What became of each image, and the logits of those that could be decoded."""

    decoded: list[Decoded]
    inference: Inference | None
    decode_seconds: float


async def _classify(
    served: ServedModel, bodies: Sequence[bytes], decoders: Decoders, deadline: float
) -> _Answer:
    with served.reserve(len(bodies)) as reservation:
        started = time.perf_counter()
        decoded = await decoders.decode(bodies, served.preprocessing, deadline)
        seconds = time.perf_counter() - started
        if len(decoded) == 1 and isinstance(decoded[0], ImageError):
            raise image_problem(decoded[0])
        good = [image for image in decoded if not isinstance(image, ImageError)]
        inference = await reservation.infer(good, deadline) if good else None
    return _Answer(decoded=decoded, inference=inference, decode_seconds=seconds)


def _respond(served: ServedModel, answer: _Answer, k: int, started: float) -> Response:
    """The JSON of a Classification."""
    inference = answer.inference
    classes = iter(top_classes(inference.logits, served.manifest.labels, k) if inference else ())
    document = {
        "model": served.name,
        "version": served.version,
        "predictions": [
            {"error": image_failure(image)} if isinstance(image, ImageError) else next(classes)
            for image in answer.decoded
        ],
        "timing_ms": {
            "decode": _ms(answer.decode_seconds),
            "queue": _ms(inference.queue_seconds if inference else 0),
            "compute": _ms(inference.compute_seconds if inference else 0),
            "total": _ms(time.perf_counter() - started),
        },
    }
    return Response(orjson.dumps(document), media_type="application/json")


def _read_query(request: Request) -> tuple[str | None, int]:
    """The model's name and the number of classes; raises a Problem of 400 for what is neither."""
    query = request.query_params
    text = query.get("top_k", "5")
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= MAX_TOP_K):
        raise Problem(400, f"top_k has to be a whole number from 1 to {MAX_TOP_K}")
    return query.get("model"), int(text)


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)
