"""Errors as problem details (RFC 9457): `{"type", "title", "status", "detail"}`."""

import logging
from collections.abc import Callable, Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from lct_deploy.errors import ImageError, ImageTooLargeError

MEDIA_TYPE = "application/problem+json"
ErrorResponse = Callable[[int, str, dict[str, str] | None], Response]
logger = logging.getLogger("lct_deploy.server")


class Problem(HTTPException):
    """An answer of status 4xx or 5xx with a sentence that says what is wrong and what mends it."""


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


def add_problem_handlers(app: FastAPI, under: Mapping[str, ErrorResponse] | None = None) -> None:
    """Make every error of `app` a problem document; an unexpected one is logged and says nothing.

    Errors of paths `under` a prefix get that prefix's own form.
    """

    def respond(
        request: Request, status: int, detail: str, headers: dict[str, str] | None = None
    ) -> Response:
        path = request.url.path
        for prefix, response in (under or {}).items():
            if path == prefix or path.startswith(f"{prefix}/"):
                return response(status, detail, headers)
        return problem_response(status, detail, headers)

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - what it is registered for
        return respond(request, error.status_code, str(error.detail), dict(error.headers or {}))

    async def on_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101
        parts = [f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors()]
        return respond(request, 400, "; ".join(parts))

    async def on_unexpected(request: Request, error: Exception) -> Response:
        logger.error("unexpected error", exc_info=error)
        return respond(request, 500, "the server failed on this request; its log says more")

    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(Exception, on_unexpected)
