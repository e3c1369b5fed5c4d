"""Run the application until SIGTERM or SIGINT; every request that was accepted is answered first."""

import asyncio
import signal
import socket
from types import FrameType

from server.http_server import HttpServer
from server.listening import bind, listen, url_of
from server.observability.logs import configure_logging
from server.repository import OwnedRepository
from server.service import Service, owning_service
from server.settings import ServerSettings
from server.workers.supervisor import supervise


def serve(settings: ServerSettings) -> None:
    """Serve until told to stop; prints the URL to stdout, alone, once requests are taken.

    Raises UsageError where the address cannot be bound, and what `owning_service` and `supervise` raise.
    """
    configure_logging(settings.log_level, settings.log_format)
    with bind(settings.host, settings.port) as listener:
        if settings.workers > 1:
            supervise(settings, listener)
        else:
            _serve_alone(settings, listener)


def _serve_alone(settings: ServerSettings, listener: socket.socket) -> None:
    service, repository = owning_service(settings)
    listen(listener)
    # uvicorn hands the signal on once it has stopped: an orderly end is exit code 0.
    signal.signal(signal.SIGTERM, _ignore)
    signal.signal(signal.SIGINT, _ignore)
    _Alone(service, repository, listener).run(sockets=[listener])


class _Alone(HttpServer):
    """A server of one process, which owns its engines and hears the signals."""

    def __init__(self, service: Service, repository: OwnedRepository, listener: socket.socket) -> None:
        super().__init__(service, listener)
        self._repository, self._drain_seconds = repository, service.settings.drain_seconds
        self._reloads: set[asyncio.Task[None]] = set()

    async def when_started(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)
        print(url_of(self._listener), flush=True)

    def _reload(self) -> None:
        """SIGHUP, as with other servers: read again what lies on the disk."""
        self._reloads.add(task := asyncio.get_running_loop().create_task(self._repository.reload_all()))
        task.add_done_callback(self._reloads.discard)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Told twice, or by somebody at a terminal: there is no load balancer to wait for.
        if self.should_exit or sig == signal.SIGINT:
            self._drain_seconds = 0
        self._drain.started = True
        super().handle_exit(sig, frame)

    async def until_drained(self) -> None:
        waited = 0.0
        while waited < self._drain_seconds:
            await asyncio.sleep(0.05)
            waited += 0.05


def _ignore(signum: int, frame: FrameType | None) -> None:
    pass
