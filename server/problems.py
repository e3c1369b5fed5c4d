"""Errors as problem details (RFC 9457): `{"type", "title", "status", "detail"}`."""

from collections.abc import Mapping
from http import HTTPStatus

from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from lct_deploy.errors import ImageError, ImageTooLargeError

MEDIA_TYPE = "application/problem+json"


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


def problem_response(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
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
