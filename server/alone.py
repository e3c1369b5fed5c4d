"""A server of one process, which reads, decodes and owns its engines."""

import asyncio
import signal
import socket
from types import FrameType

from server.http_server import HttpServer
from server.listening import listen, url_of
from server.repository import OwnedRepository
from server.service import Service, owning_service
from server.settings import ServerSettings


def serve_alone(settings: ServerSettings, listener: socket.socket) -> None:
    """Serve on `listener`, which is bound, until told to stop; raises what `owning_service` raises."""
    service, repository = owning_service(settings)
    listen(listener)
    # uvicorn hands the signal on once it has stopped: an orderly end is exit code 0.
    signal.signal(signal.SIGTERM, _ignore)
    signal.signal(signal.SIGINT, _ignore)
    _Alone(service, repository, listener).run(sockets=[listener])


class _Alone(HttpServer):
    """Hears the signals."""

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
