"""uvicorn, which loses no request when it stops."""

import asyncio
import socket
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import uvicorn

from server.app import build_app
from server.garbage import keep_for_good
from server.http_connection import HttpConnection
from server.listening import turn_away
from server.observability.unread import UnreadRequests
from server.service import Service

HANDSHAKE_SECONDS = 0.1  # for connections that have begun to be established
LAST_REQUEST_SECONDS = 1.0  # for a connection that was accepted last of all to deliver its request
NEXT_REQUEST_SECONDS = 0.1  # for one that had its answer just before, when nobody told it to go elsewhere


class HttpServer(uvicorn.Server):
    """What its subclasses have in common: it stops by no longer letting anybody in, and answering all others.

    They say what happens once it takes requests, and for how long it does after it was told to stop.
    """

    def __init__(self, service: Service, listener: socket.socket) -> None:
        settings = service.settings
        refused = UnreadRequests(service.metrics).add
        protocol = partial(HttpConnection, head_seconds=settings.body_seconds, refused=refused)
        super().__init__(
            uvicorn.Config(
                build_app(service),
                loop="uvloop",
                http=cast("Any", protocol),
                lifespan="on",
                log_config=None,  # through our own
                log_level=settings.log_level,
                access_log=False,
                server_header=False,
                timeout_keep_alive=settings.keep_alive_seconds,
                timeout_graceful_shutdown=settings.shutdown_seconds,
            )
        )
        self._listener, self._drain = listener, service.drain

    async def when_started(self) -> None:
        """It takes requests."""

    async def until_drained(self) -> None:
        """It was told to stop, and is not ready any more; it takes requests until this returns."""

    def stop_listening(self) -> None:
        """All who wanted to be let in have been."""
        for server in self.servers:
            server.close()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            keep_for_good()
            await self.when_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Not ready, but serving; then deaf, but answering what was sent; then gone."""
        await self.until_drained()
        turn_away(self._listener)
        await asyncio.sleep(HANDSHAKE_SECONDS)
        await self._accept_the_last()
        self.stop_listening()
        await self._read_the_last()
        await super().shutdown(sockets=sockets)

    async def serve_connection(self, connection: socket.socket) -> None:
        """Answer the requests of a client that was accepted."""
        await asyncio.get_running_loop().connect_accepted_socket(self._new_protocol, connection)

    async def _accept_the_last(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            await self.serve_connection(connection)

    async def _read_the_last(self) -> None:
        """Uvicorn closes connections that have no request: give each the time to send one."""
        waited = 0.0
        while waited < NEXT_REQUEST_SECONDS or (waited < LAST_REQUEST_SECONDS and self._any_unused()):
            await asyncio.sleep(0.02)
            waited += 0.02

    def _any_unused(self) -> bool:
        """Whether there is a connection whose first request has not come."""
        return any(getattr(connection, "cycle", None) is None for connection in self.server_state.connections)

    def _new_protocol(self) -> asyncio.Protocol:
        make = cast("Callable[..., asyncio.Protocol]", self.config.http_protocol_class)
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
