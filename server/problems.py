"""Errors as problem details (RFC 9457): `{"type", "title", "status", "detail"}`."""

import logging
from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from lct_deploy.errors import ImageError, ImageTooLargeError
from server.observability.record import request_record

MEDIA_TYPE = "application/problem+json"
logger = logging.getLogger("lct_deploy.server")


class Problem(HTTPException):
    """An answer of status 4xx or 5xx with a sentence that says what is wrong and what mends it."""


class ClientGoneError(Exception):
    """The client has closed its connection; nobody reads an answer."""


class ProblemDetails(BaseModel):
    """The body of an error; `about:blank` says that the status code is its type."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str


def problem_response(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    problem = ProblemDetails(title=HTTPStatus(status).phrase, status=status, detail=detail)
    return JSONResponse(problem.model_dump(), status_code=status, media_type=MEDIA_TYPE, headers=headers)


def image_problem(error: ImageError) -> Problem:
    """413 for an image over the limits, 422 for one that cannot be decoded."""
    status = 413 if isinstance(error, ImageTooLargeError) else 422
    return Problem(status, _sentence(error))


def image_failure(error: ImageError) -> str:
    """What stands in the place of a bad image's predictions."""
    return _sentence(error)


def _sentence(error: ImageError) -> str:
    return f"{error.message}; {error.hint}" if error.hint else error.message


def add_problem_handlers(app: FastAPI) -> None:
    """Make every error of `app` a problem document; an unexpected one is logged and says nothing."""

    async def on_http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)  # noqa: S101 - what it is registered for
        return problem_response(error.status_code, str(error.detail), dict(error.headers or {}))

    async def on_validation(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)  # noqa: S101
        parts = [f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors()]
        return problem_response(400, "; ".join(parts))

    async def on_unexpected(request: Request, error: Exception) -> JSONResponse:
        logger.error("unexpected error", exc_info=error)
        request_record(request).reported = True
        return problem_response(500, "the server failed on this request; its log says more")

    async def on_gone(_: Request, error: Exception) -> Response:
        return Response(status_code=499)  # for the log and the metrics alone

    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(ClientGoneError, on_gone)
    app.add_exception_handler(ClientDisconnect, on_gone)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(Exception, on_unexpected)
