"""Leaving without losing a request: what happens between the signal to stop and the last answer."""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Drain:
    """Whether the server is about to stop. Then it is not ready, and asks its clients to go elsewhere."""

    def __init__(self) -> None:
        self.started = False


class DrainMiddleware:
    """`Connection: close` on every answer once the drain has started.

    A connection that stays open would be closed by the server in the end, at a moment at which its
    client may be sending the next request.
    """

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self._app, self._drain = app, drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def closing(message: Message) -> None:
            if message["type"] == "http.response.start" and self._drain.started:
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        await self._app(scope, receive, closing if scope["type"] == "http" else send)
