"""The routes of the protocol."""

from collections.abc import Sequence
from concurrent.futures import Executor

import orjson
from fastapi import APIRouter, Request, Response

from server.bodies import read_body
from server.problems import Problem
from server.v2 import schemas
from server.v2.backend import Model, Models
from server.v2.documentation import (
    BINARY,
    FAILURES,
    LENGTH_HEADER,
    PlainRoute,
    add_model_route,
    request_body,
    responses,
)
from server.v2.infer import Inferences
from server.v2.limits import Limits
from server.v2.metadata import model_config, model_metadata, server_metadata
from server.v2.repository import MAX_BYTES, load_model, repository_index, unload_model
from server.v2.stats import model_statistics


def v2_router(models: Models, decoders: Executor, limits: Limits) -> APIRouter:
    """All routes but those of the server's health; images are decoded in `decoders`."""
    router = APIRouter(tags=["V2"], route_class=PlainRoute)
    _add_infer(router, Inferences(models=models, decoders=decoders, limits=limits))
    _add_server(router)
    _add_statistics(router, models)  # before the model that could be called stats
    _add_models(router, models, limits)
    _add_repository(router, models, limits)
    return router


def _add_infer(router: APIRouter, inferences: Inferences) -> None:
    async def infer(request: Request, model: str, version: str | None) -> Response:
        """Logits or the best classes, for pixels or image files; in JSON or as binary tensors."""
        return await inferences.answer(request, model, version)

    add_model_route(
        router,
        "/infer",
        infer,
        methods=["POST"],
        responses=responses(schemas.InferenceResponse, *FAILURES, content=BINARY),
        openapi_extra={
            **request_body(schemas.InferenceRequest, blobs=True, required=True),
            "parameters": [LENGTH_HEADER],
        },
    )


def _add_server(router: APIRouter) -> None:
    async def server(_: Request) -> Response:
        """The server's name, its version and the protocol's extensions that it has."""
        return _json(server_metadata())

    router.add_api_route("/v2", server, responses=responses(schemas.ServerMetadata))
    router.add_api_route("/v2/", server, include_in_schema=False)


def _add_statistics(router: APIRouter, models: Models) -> None:
    async def all_statistics(_: Request) -> Response:
        """What all models have run since they were loaded."""
        return await _statistics(models.models)

    async def statistics(_: Request, model: str, version: str | None) -> Response:
        """What a model has run since it was loaded: all its versions, unless one is named."""
        served = models.find(model, version)
        if version is not None:
            return await _statistics([served])
        return await _statistics([one for one in models.models if one.name == served.name])

    router.add_api_route(
        "/v2/models/stats", all_statistics, responses=responses(schemas.StatisticsResponse, 503)
    )
    add_model_route(router, "/stats", statistics, responses=responses(schemas.StatisticsResponse, 404, 503))


async def _statistics(models: Sequence[Model]) -> Response:
    return _json({"model_stats": [await model_statistics(model) for model in models]})


def _add_models(router: APIRouter, models: Models, limits: Limits) -> None:
    async def metadata(_: Request, model: str, version: str | None) -> Response:
        """A model's versions and tensors."""
        served = models.find(model, version)
        return _json(
            model_metadata(served, [one.version for one in models.models if one.name == served.name])
        )

    async def ready(_: Request, model: str, version: str | None) -> Response:
        """Whether the model takes requests."""
        served = models.find(model, version)
        if not served.ready:
            raise Problem(503, f"{served.name} version {served.version} is not ready")
        return _json({"name": served.name, "ready": True})

    async def config(_: Request, model: str, version: str | None) -> Response:
        """A model's configuration, for tools that generate load."""
        return _json(model_config(models.find(model, version), limits.max_rows))

    add_model_route(router, "", metadata, responses=responses(schemas.ModelMetadata, 404))
    add_model_route(router, "/ready", ready, responses=responses(schemas.ModelReady, 404, 503))
    add_model_route(router, "/config", config, responses=responses(schemas.ModelConfig, 404))


def _add_repository(router: APIRouter, models: Models, limits: Limits) -> None:
    async def body(request: Request) -> bytes:
        return await read_body(request, min(limits.max_body_bytes, MAX_BYTES), seconds=limits.body_seconds)

    async def index(request: Request) -> Response:
        """Models that are served, and what else the repository holds."""
        return _json(await repository_index(models, await body(request)))

    async def load(request: Request, model: str) -> Response:
        """Serve what the repository now has by this name, in place of what is served."""
        await load_model(models, model, await body(request))
        return _json({})

    async def unload(request: Request, model: str) -> Response:
        """Serve the model no longer; what it has accepted is answered first."""
        await unload_model(models, model, await body(request))
        return _json({})

    router.add_api_route(
        "/v2/repository/index",
        index,
        methods=["POST"],
        responses=responses(list[schemas.IndexedModel], 400, 408, 413),
        openapi_extra=request_body(schemas.IndexRequest),
    )
    for action, endpoint in (("load", load), ("unload", unload)):
        router.add_api_route(
            f"/v2/repository/models/{{model}}/{action}",
            endpoint,
            methods=["POST"],
            responses=responses(schemas.Done, 400, 404, 408, 413),
            openapi_extra=request_body(schemas.RepositoryRequest),
        )


def _json(document: object) -> Response:
    return Response(orjson.dumps(document), media_type="application/json")
