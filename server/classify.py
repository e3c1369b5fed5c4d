"""POST /v1/classify: images in, labelled probabilities out."""

import asyncio
import time
from concurrent.futures import Executor
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request
from numpy.typing import NDArray
from pydantic import BaseModel

from lct_deploy.errors import ImageError
from lct_deploy.predictions import Prediction, top_k
from lct_deploy.preprocessing import Preprocessing, decode
from server.models import ModelRegistry, ServedModel
from server.problems import MEDIA_TYPE, Problem, ProblemDetails, image_failure, image_problem
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
}


def classify_router(models: ModelRegistry, decoders: Executor, *, max_images: int) -> APIRouter:
    """Routes over `models`, decoding in `decoders`."""
    router = APIRouter(tags=["classification"])

    @router.post("/v1/classify", responses=_PROBLEMS, openapi_extra={"requestBody": _BODY})
    async def classify(
        request: Request,
        top: Annotated[int, Query(alias="top_k", ge=1, le=1000, description="Classes per image.")] = 5,
        model: Annotated[str | None, Query(description="Which model, where several are served.")] = None,
    ) -> Classification:
        """Classify one image (raw body) or several (multipart); a bad one fails alone."""
        started = time.perf_counter()
        served = _choose(models, model)
        bodies = await read_images(request, max_images=max_images)
        decoded, decode_seconds = await _decode_all(bodies, served.manifest.input.preprocessing, decoders)
        if len(decoded) == 1 and isinstance(decoded[0], ImageError):
            raise image_problem(decoded[0])
        predictions, queue, compute = await _infer_good(served, decoded, top)
        return Classification(
            model=served.name,
            version=served.manifest.version,
            predictions=predictions,
            timing_ms=Timing(
                decode=_ms(decode_seconds),
                queue=_ms(queue),
                compute=_ms(compute),
                total=_ms(time.perf_counter() - started),
            ),
        )

    return router


def _choose(models: ModelRegistry, name: str | None) -> ServedModel:
    served = models.get(name)
    if served is not None:
        return served
    known = ", ".join(models.names)
    if name is None:
        raise Problem(400, f"several models are served; choose one with ?model=: {known}")
    raise Problem(404, f"no model {name!r} is served here; there is {known}")


async def _decode_all(
    bodies: list[bytes], preprocessing: Preprocessing, decoders: Executor
) -> tuple[list[Decoded], float]:
    started = time.perf_counter()
    loop = asyncio.get_running_loop()
    jobs = [loop.run_in_executor(decoders, _try_decode, body, preprocessing) for body in bodies]
    return await asyncio.gather(*jobs), time.perf_counter() - started


def _try_decode(body: bytes, preprocessing: Preprocessing) -> Decoded:
    try:
        return decode(body, preprocessing)
    except ImageError as error:
        return error


async def _infer_good(
    served: ServedModel, decoded: list[Decoded], k: int
) -> tuple[list[list[Prediction] | ImageFailure], float, float]:
    """Predictions for the images that decoded, failures in the places of the others."""
    good = [image for image in decoded if not isinstance(image, ImageError)]
    answers = iter(())
    queue = compute = 0.0
    if good:
        inference = await served.infer(np.stack(good))
        queue, compute = inference.queue_seconds, inference.compute_seconds
        answers = iter(top_k(inference.logits, served.manifest.labels, k))
    results = [
        ImageFailure(error=image_failure(image)) if isinstance(image, ImageError) else next(answers)
        for image in decoded
    ]
    return results, queue, compute


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)
