"""What one request may hold and how long it may take."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of every request."""

    max_rows: int = 64  # images
    max_body_bytes: int = 32 << 20  # as sent, and once decompressed
    body_seconds: float = 30  # for a client to send its body
    request_seconds: float = 30  # for an answer; a client may set less
