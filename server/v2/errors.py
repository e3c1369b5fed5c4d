"""Errors as the protocol has them: `{"error": "…"}` with a status that is not 200."""

from collections.abc import Mapping

import orjson
from fastapi import Response

from server.problems import Problem

PREFIX = "/v2"


def v2_response(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    return Response(
        orjson.dumps({"error": detail}), status_code=status, headers=headers, media_type="application/json"
    )


def bad(detail: str) -> Problem:
    """A request that is wrong in itself."""
    return Problem(400, detail)
