"""Run the application until SIGTERM or SIGINT; every request that was accepted is answered first."""

from server.listening import bind
from server.observability.logs import configure_logging
from server.settings import ServerSettings
from server.workers.defaults import settled


def serve(settings: ServerSettings) -> None:
    """Serve until told to stop; prints the URL to stdout, alone, once requests are taken.

    Raises UsageError where the address cannot be bound, and what `settled`, `serve_alone` and `supervise`
    raise.
    """
    configure_logging(settings.log_level, settings.log_format)
    settings = settled(settings)
    # Either imports what the other has no use for: a supervisor that knows nothing of HTTP is there sooner.
    with bind(settings.host, settings.port) as listener:
        if settings.processes > 1:
            from server.workers.supervisor import supervise

            supervise(settings, listener)
        else:
            from server.alone import serve_alone

            serve_alone(settings, listener)
