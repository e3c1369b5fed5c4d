"""Who a request is: an id of its own, and its place in a trace (W3C Trace Context)."""

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from random import getrandbits

REQUEST_ID_HEADER = b"x-request-id"
_READ = frozenset((REQUEST_ID_HEADER, b"traceparent", b"tracestate"))
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
# Of versions after 00, more fields may follow the four that are known.
_TRACEPARENT = re.compile(
    rb"(?P<version>[0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?P<more>-.*)?"
)
_LONGEST_STATE = 512

Headers = Iterable[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A span, in lower-case hexadecimal as in `traceparent`."""

    trace_id: str
    span_id: str
    flags: int = 0
    state: str = ""  # of the vendors on the way, unread


def identify(headers: Headers) -> tuple[str, TraceContext | None]:
    """The client's id and trace where they are well-formed, else a new id and no trace."""
    request_id: bytes | None = None
    parents: list[bytes] = []
    states: list[bytes] = []
    for name, value in headers:
        if name in _READ:
            if name == REQUEST_ID_HEADER:
                request_id = value
            else:
                (parents if name == b"traceparent" else states).append(value)
    known = request_id is not None and _REQUEST_ID.fullmatch(request_id)
    return known[0].decode() if known else new_request_id(), parse_traceparent(parents, states)


def new_request_id() -> str:
    """A UUID of version 7: sorts by time, and can be told from the ids of other servers."""
    milliseconds = time.time_ns() // 1_000_000 & 0xFFFFFFFFFFFF
    value = milliseconds << 80 | 7 << 76 | getrandbits(12) << 64 | 2 << 62 | getrandbits(62)
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def parse_traceparent(parents: list[bytes], states: list[bytes]) -> TraceContext | None:
    """None unless there is exactly one, and it is as the standard says to the letter."""
    match = _TRACEPARENT.fullmatch(parents[0]) if len(parents) == 1 else None
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == b"ff" or (version == b"00" and more is not None):
        return None
    if not trace_id.strip(b"0") or not span_id.strip(b"0"):
        return None
    state = b",".join(states)
    return TraceContext(
        trace_id=trace_id.decode(),
        span_id=span_id.decode(),
        flags=int(flags, 16),
        state=state.decode("latin-1") if len(state) <= _LONGEST_STATE else "",
    )
