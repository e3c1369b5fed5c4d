"""The routes of the protocol."""

from collections.abc import Sequence

import orjson
from fastapi import APIRouter, Request, Response

from server.plain_route import PlainRoute
from server.problems import Problem
from server.served import ServedModel
from server.service import Service
from server.v2 import schemas
from server.v2.documentation import (
    BINARY,
    FAILURES,
    LENGTH_HEADER,
    add_model_route,
    request_body,
    responses,
)
from server.v2.infer import Inferences
from server.v2.metadata import model_config, model_metadata, server_metadata
from server.v2.repository import MAX_BYTES, load_model, repository_index, unload_model
from server.v2.stats import model_statistics


def v2_router(service: Service, inferences: Inferences) -> APIRouter:
    """All routes but those of the server's health."""
    router = APIRouter(tags=["V2"], route_class=PlainRoute)
    _add_infer(router, inferences)
    _add_server(router)
    _add_statistics(router, service)  # before the model that could be called stats
    _add_models(router, service)
    _add_repository(router, service)
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


def _add_statistics(router: APIRouter, service: Service) -> None:
    models, keys = service.models, service.keys

    async def all_statistics(request: Request) -> Response:
        """What all models have run since they were loaded."""
        keys.check(request, "infer")
        return await _statistics(models.models)

    async def statistics(request: Request, model: str, version: str | None) -> Response:
        """What a model has run since it was loaded: all its versions, unless one is named."""
        keys.check(request, "infer")
        served = models.find(model, version)
        if version is not None:
            return await _statistics([served])
        return await _statistics([one for one in models.models if one.name == served.name])

    router.add_api_route(
        "/v2/models/stats", all_statistics, responses=responses(schemas.StatisticsResponse, 401, 503)
    )
    add_model_route(
        router, "/stats", statistics, responses=responses(schemas.StatisticsResponse, 401, 404, 503)
    )


async def _statistics(models: Sequence[ServedModel]) -> Response:
    return _json({"model_stats": [await model_statistics(model) for model in models]})


def _add_models(router: APIRouter, service: Service) -> None:
    models, keys = service.models, service.keys

    async def metadata(request: Request, model: str, version: str | None) -> Response:
        """A model's versions and tensors."""
        keys.check(request, "infer")
        served = models.find(model, version)
        return _json(
            model_metadata(served, [one.version for one in models.models if one.name == served.name])
        )

    async def ready(request: Request, model: str, version: str | None) -> Response:
        """Whether the model takes requests."""
        keys.check(request, "infer")
        served = models.find(model, version)
        if not served.ready:
            raise Problem(503, f"{served.name} version {served.version} is not ready")
        return _json({"name": served.name, "ready": True})

    async def config(request: Request, model: str, version: str | None) -> Response:
        """A model's configuration, for tools that generate load."""
        keys.check(request, "infer")
        return _json(model_config(models.find(model, version), service.settings.max_images))

    add_model_route(router, "", metadata, responses=responses(schemas.ModelMetadata, 401, 404))
    add_model_route(router, "/ready", ready, responses=responses(schemas.ModelReady, 401, 404, 503))
    add_model_route(router, "/config", config, responses=responses(schemas.ModelConfig, 401, 404))


def _add_repository(router: APIRouter, service: Service) -> None:
    repository, keys, bodies = service.repository, service.keys, service.bodies

    async def index(request: Request) -> Response:
        """Models that are served, and what else the repository holds."""
        keys.check(request, "infer")
        async with bodies.read(request, MAX_BYTES) as body:
            return _json(await repository_index(repository, body))

    async def load(request: Request, model: str) -> Response:
        """Serve what the repository now has by this name, in place of what is served."""
        keys.check(request, "admin")
        async with bodies.read(request, MAX_BYTES) as body:
            await load_model(repository, model, body)
        return _json({})

    async def unload(request: Request, model: str) -> Response:
        """Serve the model no longer; what it has accepted is answered first."""
        keys.check(request, "admin")
        async with bodies.read(request, MAX_BYTES) as body:
            await unload_model(repository, model, body)
        return _json({})

    router.add_api_route(
        "/v2/repository/index",
        index,
        methods=["POST"],
        responses=responses(list[schemas.IndexedModel], 400, 401, 408, 413),
        openapi_extra=request_body(schemas.IndexRequest),
    )
    for action, endpoint in (("load", load), ("unload", unload)):
        router.add_api_route(
            f"/v2/repository/models/{{model}}/{action}",
            endpoint,
            methods=["POST"],
            responses=responses(schemas.Done, 400, 401, 403, 404, 408, 413),
            openapi_extra=request_body(schemas.RepositoryRequest),
        )


def _json(document: object) -> Response:
    return Response(orjson.dumps(document), media_type="application/json")
