"""POST /v1/classify: images in, labelled probabilities out."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import orjson
from fastapi import APIRouter, Query, Request, Response
from numpy.typing import NDArray
from pydantic import BaseModel

from lct_deploy.errors import ImageError
from lct_deploy.predictions import Prediction, top_k
from lct_deploy.preprocessing import Preprocessing, decode
from server.engine.client import Inference
from server.lifetimes import deadline_of, while_connected
from server.models import ModelRegistry
from server.observability.record import RequestRecord, request_record
from server.problems import MEDIA_TYPE, ProblemDetails, image_failure, image_problem
from server.refusals import DeadlineError
from server.served import ServedModel
from server.settings import ServerSettings
from server.uploads import FORM_TYPE, RAW_TYPES, read_images

Decoded = NDArray[np.uint8] | ImageError


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
_PROBLEM = {"content": {MEDIA_TYPE: {"schema": ProblemDetails.model_json_schema()}}}
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The request is malformed, or the model has to be named.", **_PROBLEM},
    404: {"description": "No model of this name.", **_PROBLEM},
    413: {"description": "The image is over the size limits.", **_PROBLEM},
    415: {"description": "The body is of a type that is not accepted.", **_PROBLEM},
    422: {"description": "The body is not a complete image.", **_PROBLEM},
    503: {"description": "Too busy, or the model's engine has died; Retry-After says when.", **_PROBLEM},
    504: {"description": "The deadline was over before the answer.", **_PROBLEM},
}


def classify_router(models: ModelRegistry, decoders: Executor, settings: ServerSettings) -> APIRouter:
    """Routes over `models`, decoding in `decoders`."""
    router = APIRouter(tags=["classification"])

    @router.post(
        "/v1/classify",
        response_model=Classification,
        responses=_PROBLEMS,
        openapi_extra={"requestBody": _BODY},
    )
    async def classify(
        request: Request,
        top: Annotated[int, Query(alias="top_k", ge=1, le=1000, description="Classes per image.")] = 5,
        model: Annotated[str | None, Query(description="Which model, where several are served.")] = None,
    ) -> Response:
        """Classify one image (raw body) or several (multipart); a bad one fails alone."""
        started = time.perf_counter()
        deadline = deadline_of(request, settings.request_seconds)
        with models.lease(model) as served:
            bodies = await read_images(request, max_images=settings.max_images)
            work = _classify(served, bodies, decoders, deadline, request_record(request))
            answer = await while_connected(request, work)
        return _respond(served, answer, top, started)

    return router


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """What became of each image, and the logits of those that could be decoded."""

    decoded: list[Decoded]
    inference: Inference | None
    decode_seconds: float


async def _classify(
    served: ServedModel,
    bodies: Sequence[bytes],
    decoders: Executor,
    deadline: float,
    record: RequestRecord,
) -> _Answer:
    with served.reserve(len(bodies)) as reservation:
        decoded, seconds = await _decode_all(bodies, served.manifest.input.preprocessing, decoders, deadline)
        record.stage("decode", seconds)
        if len(decoded) == 1 and isinstance(decoded[0], ImageError):
            raise image_problem(decoded[0])
        good = [image for image in decoded if not isinstance(image, ImageError)]
        inference = await reservation.infer(good, deadline) if good else None
    return _Answer(decoded=decoded, inference=inference, decode_seconds=seconds)


def _respond(served: ServedModel, answer: _Answer, k: int, started: float) -> Response:
    """The JSON of a Classification: made of plain values, which is several times cheaper than models."""
    inference = answer.inference
    labelled = iter(top_k(inference.logits, served.manifest.labels, k) if inference else ())
    predictions: list[Any] = [
        {"error": image_failure(image)}
        if isinstance(image, ImageError)
        else [prediction.model_dump() for prediction in next(labelled)]
        for image in answer.decoded
    ]
    timing = {
        "decode": _ms(answer.decode_seconds),
        "queue": _ms(inference.queue_seconds if inference else 0),
        "compute": _ms(inference.compute_seconds if inference else 0),
        "total": _ms(time.perf_counter() - started),
    }
    document = {
        "model": served.name,
        "version": served.version,
        "predictions": predictions,
        "timing_ms": timing,
    }
    return Response(orjson.dumps(document), media_type="application/json")


async def _decode_all(
    bodies: Sequence[bytes], preprocessing: Preprocessing, decoders: Executor, deadline: float
) -> tuple[list[Decoded], float]:
    started = time.perf_counter()
    loop = asyncio.get_running_loop()
    jobs = [loop.run_in_executor(decoders, _try_decode, body, preprocessing, deadline) for body in bodies]
    return await asyncio.gather(*jobs), time.perf_counter() - started


def _try_decode(body: bytes, preprocessing: Preprocessing, deadline: float) -> Decoded:
    if time.monotonic() > deadline:
        raise DeadlineError("the request was not answered before its deadline")
    try:
        return decode(body, preprocessing)
    except ImageError as error:
        return error


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)
