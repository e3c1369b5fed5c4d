"""The socket that clients connect to: opened, told, and closed so that nobody who was let in is lost."""

import contextlib
import ctypes
import socket
import struct

from lct_deploy.errors import UsageError

BACKLOG = 2048  # connections that nobody has accepted; uvicorn's own
_SO_ATTACH_FILTER = 26  # of <asm/socket.h>; Python does not name it
# Of TCP's flags (byte 13 of the header) SYN without ACK begins a connection: those packets are dropped, all
# others kept whole. In the instructions of classic BPF: load a byte, and, jump if equal, return, return.
_NO_NEW_CONNECTIONS = (
    (0x30, 0, 0, 13),
    (0x54, 0, 0, 0x12),
    (0x15, 0, 1, 0x02),
    (0x06, 0, 0, 0),
    (0x06, 0, 0, 0xFFFFFFFF),
)


def bind(host: str, port: int) -> socket.socket:
    """A socket that does not listen yet; raises UsageError for an address that cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise _cannot_listen(host, port, error) from error
    listener.setblocking(False)
    return listener


def listen(listener: socket.socket) -> None:
    """Let clients connect; raises UsageError where another process has begun to listen there meanwhile."""
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        host, port = listener.getsockname()[:2]
        raise _cannot_listen(host, port, error) from error


def _cannot_listen(host: str, port: int, error: Exception) -> UsageError:
    return UsageError(f"cannot listen on {host} port {port}: {error}", hint="choose --host and --port")


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def turn_away(listener: socket.socket) -> None:
    """Let no new connection begin, for all processes that share the socket; those that have begun go on.

    Closing a listening socket resets the connections that the kernel has established and nobody has
    accepted, and between the last accept and the close another one can come. Clients that are turned
    away try again after a second, and find the port closed: they have sent nothing yet. Without effect
    where the system has no such filters.
    """
    program = b"".join(struct.pack("HBBI", *instruction) for instruction in _NO_NEW_CONNECTIONS)
    memory = ctypes.create_string_buffer(program)
    described = struct.pack("HP", len(_NO_NEW_CONNECTIONS), ctypes.addressof(memory))
    with contextlib.suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)
