"""Every exception of a request as a response: in V2's own form under /v2, a problem document elsewhere."""

import logging
from collections.abc import Mapping

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from server.observability.record import request_record
from server.problems import ClientGoneError, problem_response
from server.refusals import Refusal
from server.v2.errors import PREFIX, v2_response

logger = logging.getLogger("lct_deploy.server")


def error_response(request: Request, error: Exception) -> Response:
    """An unexpected error is logged and says nothing; a refusal is noted, which its status does not tell."""
    record = request_record(request)
    if isinstance(error, Refusal):
        record.refusal = error.outcome
    if isinstance(error, HTTPException):
        return _respond(request, error.status_code, str(error.detail), error.headers)
    if isinstance(error, RequestValidationError):
        parts = [f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors()]
        return _respond(request, 400, "; ".join(parts))
    if isinstance(error, ClientGoneError):
        return Response(status_code=499)  # for the log and the metrics alone
    logger.error("unexpected error", exc_info=error)
    record.reported = True
    return _respond(request, 500, "the server failed on this request; its log says more")


def add_error_handlers(app: FastAPI) -> None:
    """Make every error of `app` what `error_response` makes of it."""

    async def respond(request: Request, error: Exception) -> Response:
        return error_response(request, error)

    for kind in (HTTPException, RequestValidationError, ClientGoneError, Exception):
        app.add_exception_handler(kind, respond)


def _respond(
    request: Request, status: int, detail: str, headers: Mapping[str, str] | None = None
) -> Response:
    path = request.scope["path"]
    is_v2 = path == PREFIX or path.startswith(f"{PREFIX}/")
    return (v2_response if is_v2 else problem_response)(status, detail, headers)
