"""Run the application until SIGTERM or SIGINT; requests in flight are answered first."""

import logging
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType

import uvicorn

from lct_deploy.errors import UsageError
from server.app import create_app
from server.settings import ServerSettings


def serve(settings: ServerSettings) -> None:
    """Serve until told to stop; prints the URL to stdout, alone, once requests are taken.

    Raises UsageError where the address cannot be bound, and what `create_app` raises.
    """
    logging.basicConfig(level=settings.log_level.upper(), format="%(levelname)s:     %(message)s")
    listener = _bind(settings.host, settings.port)
    with listener:
        app = create_app(settings)
        config = uvicorn.Config(
            app,
            loop="uvloop",
            http="httptools",
            lifespan="on",
            log_level=settings.log_level,
            access_log=False,
            timeout_graceful_shutdown=settings.shutdown_seconds,
        )
        # uvicorn hands the signal on once it has stopped: an orderly end is exit code 0.
        signal.signal(signal.SIGTERM, _ignore)
        signal.signal(signal.SIGINT, _ignore)
        _Server(config, on_started=lambda: _announce(listener)).run(sockets=[listener])


class _Server(uvicorn.Server):
    """uvicorn that says when it is up."""

    def __init__(self, config: uvicorn.Config, *, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self._on_started()


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
