"""What an HTTP process and an engine say to each other, a packet of a Unix socket each.

Times are seconds of `time.monotonic`, which all processes of a machine share.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

_SUBMIT = struct.Struct("<BQdI")  # then so many slots, four bytes each
_CANCEL = struct.Struct("<BQ")
_STATISTICS = struct.Struct("<B")
_DONE = struct.Struct("<BQBddI")
LONGEST = 1 << 17  # bytes of a packet; it may hold several messages of a client


class Kind(IntEnum):
    """The first byte of a packet."""

    SUBMIT = 1
    CANCEL = 2
    STATISTICS = 3
    DONE = 4


class Status(IntEnum):
    """How a request ended."""

    OK = 0
    EXPIRED = 1
    CANCELLED = 2
    FAILED = 3


@dataclass(frozen=True, slots=True)
class Submit:
    """Infer the images in these slots before `deadline`."""

    request: int
    deadline: float
    slots: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nobody waits for this request any more; it is answered with Done all the same."""

    request: int


@dataclass(frozen=True, slots=True)
class AskStatistics:
    """Answered with a packet of `Kind.STATISTICS` and JSON."""


@dataclass(frozen=True, slots=True)
class Done:
    """A request has ended; its slots are its sender's again. `batch`: images in its largest batch."""

    request: int
    status: Status
    queue_seconds: float
    compute_seconds: float
    batch: int


def pack_submit(request: int, deadline: float, slots: Sequence[int]) -> bytes:
    return _SUBMIT.pack(Kind.SUBMIT, request, deadline, len(slots)) + struct.pack(f"<{len(slots)}I", *slots)


def pack_cancel(request: int) -> bytes:
    return _CANCEL.pack(Kind.CANCEL, request)


def pack_ask_statistics() -> bytes:
    return _STATISTICS.pack(Kind.STATISTICS)


def unpack_for_engine(packet: bytes) -> Iterator[Submit | Cancel | AskStatistics]:
    """The messages of a packet that an engine receives."""
    at = 0
    while at < len(packet):
        kind = packet[at]
        if kind == Kind.SUBMIT:
            _, request, deadline, count = _SUBMIT.unpack_from(packet, at)
            at += _SUBMIT.size
            yield Submit(request, deadline, struct.unpack_from(f"<{count}I", packet, at))
            at += 4 * count
        elif kind == Kind.CANCEL:
            yield Cancel(_CANCEL.unpack_from(packet, at)[1])
            at += _CANCEL.size
        else:
            yield AskStatistics()
            at += _STATISTICS.size


def pack_done(done: Sequence[Done]) -> bytes:
    """One packet for all requests of a client that a batch has ended."""
    return b"".join(
        _DONE.pack(Kind.DONE, d.request, d.status, d.queue_seconds, d.compute_seconds, d.batch) for d in done
    )


def pack_statistics(document: bytes) -> bytes:
    return _STATISTICS.pack(Kind.STATISTICS) + document


def unpack_for_client(packet: bytes) -> list[Done] | bytes:
    """A packet that an engine has sent: requests that ended, or its statistics in JSON."""
    if packet[0] == Kind.STATISTICS:
        return packet[1:]
    return [
        Done(request, Status(status), queue, compute, batch)
        for _, request, status, queue, compute, batch in _DONE.iter_unpack(packet)
    ]
