"""Run the application until SIGTERM or SIGINT; every request that was accepted is answered first."""

import asyncio
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType
from typing import cast

import uvicorn

from lct_deploy.errors import UsageError
from server.app import build_app
from server.observability.logs import configure_logging
from server.service import Service
from server.settings import ServerSettings

# For a connection that was accepted last of all to deliver its request.
LAST_REQUEST_SECONDS = 0.1


def serve(settings: ServerSettings) -> None:
    """Serve until told to stop; prints the URL to stdout, alone, once requests are taken.

    Raises UsageError where the address cannot be bound, and what `Service.open` raises.
    """
    configure_logging(settings.log_level, settings.log_format)
    listener = _bind(settings.host, settings.port)
    with listener:
        service = Service.open(settings)
        config = uvicorn.Config(
            build_app(service),
            loop="uvloop",
            http="httptools",
            lifespan="on",
            log_config=None,  # through our own
            log_level=settings.log_level,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=settings.shutdown_seconds,
        )
        # uvicorn hands the signal on once it has stopped: an orderly end is exit code 0.
        signal.signal(signal.SIGTERM, _ignore)
        signal.signal(signal.SIGINT, _ignore)
        _Server(config, listener, service, settings.drain_seconds).run(sockets=[listener])


class _Server(uvicorn.Server):
    """uvicorn that says when it is up, and that goes on for a while after SIGTERM before it leaves."""

    def __init__(
        self, config: uvicorn.Config, listener: socket.socket, service: Service, drain_seconds: float
    ) -> None:
        super().__init__(config)
        self._listener, self._drain_seconds = listener, drain_seconds
        self._drain, self._models = service.drain, service.models
        self._reloads: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)
            _announce(self._listener)

    def _reload(self) -> None:
        """SIGHUP, as with other servers: read again what lies on the disk."""
        self._reloads.add(task := asyncio.get_running_loop().create_task(self._models.reload_all()))
        task.add_done_callback(self._reloads.discard)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Told twice, or by somebody at a terminal: there is no load balancer to wait for.
        if self.should_exit or sig == signal.SIGINT:
            self._drain_seconds = 0
        self._drain.started = True
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Not ready, but serving; then deaf, but answering what was sent; then gone."""
        waited = 0.0
        while waited < self._drain_seconds:
            await asyncio.sleep(0.05)
            waited += 0.05
        await self._accept_the_last()
        for server in self.servers:
            server.close()
        await asyncio.sleep(LAST_REQUEST_SECONDS)
        await super().shutdown(sockets=sockets)

    async def _accept_the_last(self) -> None:
        """Connections that the kernel has established and nobody has accepted die with the listener."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            await loop.connect_accepted_socket(self._new_protocol, connection)

    def _new_protocol(self) -> asyncio.Protocol:
        make = cast("Callable[..., asyncio.Protocol]", self.config.http_protocol_class)
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise UsageError(
            f"cannot listen on {host} port {port}: {error}", hint="choose --host and --port"
        ) from error
    listener.set_inheritable(True)
    return listener


def _announce(listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    print(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
    sys.stdout.flush()


def _ignore(signum: int, frame: FrameType | None) -> None:
    pass
