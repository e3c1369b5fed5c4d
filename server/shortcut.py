"""Inference requests on the shortest way to their endpoint; all others through FastAPI.

FastAPI's own layers cost as much as everything else that is done for a small image in this process.
The endpoints are FastAPI's too: there they are documented, and here they are only reached sooner.
"""

from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

from server.observability.record import request_record

Endpoint = Callable[..., Awaitable[Response]]


class Shortcut:
    """POST requests whose path fits one of `routes` (as FastAPI writes them) go to its endpoint.

    It is called with the request and the path's parameters.

    `on_error` makes of an exception what FastAPI's handlers would.
    """

    def __init__(
        self,
        app: ASGIApp,
        routes: Mapping[str, Endpoint],
        on_error: Callable[[Request, Exception], Response],
    ) -> None:
        self._app, self._on_error = app, on_error
        self._routes = [(compile_path(path)[0], path, endpoint) for path, endpoint in routes.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            for pattern, path, endpoint in self._routes:
                if match := pattern.match(scope["path"]):
                    request = Request(scope, receive)
                    request_record(request).route = path
                    response = await self._respond(request, endpoint(request, **match.groupdict()))
                    await response(scope, receive, send)
                    return
        await self._app(scope, receive, send)

    async def _respond(self, request: Request, answer: Awaitable[Response]) -> Response:
        try:
            return await answer
        except Exception as error:
            return self._on_error(request, error)
