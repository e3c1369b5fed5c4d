"""A client's connection: uvicorn's, which alone waits forever for the head of a request, however long."""

from asyncio import TimerHandle, Transport
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from server.problems import MEDIA_TYPE, problem_response

HEAD_BYTES = 64 << 10  # the request line and all headers; others allow 8 to 64 KiB


class HttpConnection(HttpToolsProtocol):
    """Refuses a head of more than HEAD_BYTES with 431, and one not complete after `head_seconds` with 408.

    What is complete in one read of the socket, at most 256 KiB, is not measured: memory is bounded all the
    same. A connection on which nothing comes at all is closed as one is that has had its answer. What no
    application gets to see is answered with a problem too; `refused` is told the status, why, and the
    client's address.
    """

    def __init__(
        self,
        *args: Any,
        head_seconds: float,
        refused: Callable[[int, str, str | None], None],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._head_seconds, self._refused = head_seconds, refused
        self._head_bytes = 0
        self._head_timer: TimerHandle | None = None  # None: no head is being read
        self._between = True  # no request is being read
        self._begun = 0  # requests that began in the last chunk
        self._deaf = False

    def connection_made(self, transport: Transport) -> None:
        super().connection_made(transport)
        self._close_if_idle()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        apart, self._begun = self._between, 0
        super().data_received(data)
        # Otherwise the chunk holds the end of a request before it too: how much is not known.
        if self._head_timer is not None and self._begun <= apart:
            self._head_bytes += len(data)
        if self._head_timer is not None and self._head_bytes > HEAD_BYTES:
            self._refuse(431, f"the request line and headers are over the limit of {HEAD_BYTES} bytes")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._between, self._head_bytes = False, 0
        self._begun += 1
        self._head_timer = self.loop.call_later(self._head_seconds, self._head_is_late)

    def on_headers_complete(self) -> None:
        self._end_head()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._between = True
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What the parser does not understand."""
        self._refuse(400, "this is not an HTTP/1.1 request")

    def _close_if_idle(self) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def _end_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._refuse(408, f"the headers were not complete after {self._head_seconds:g} s")

    def _refuse(self, status: int, detail: str) -> None:
        self._end_head()
        if self.transport.is_closing():
            return
        self._refused(status, detail, self.client[0] if self.client else None)
        if getattr(self.cycle, "response_complete", True) is False:
            # What was sent before is answered, and then it is closed. What comes until then is dropped:
            # closing over unread bytes would reset the connection, and lose the answer on its way.
            self._deaf = True
            self.cycle.keep_alive = False
            return
        body = problem_response(status, detail).body
        headers = f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[HTTPStatus(status)] + headers.encode() + bytes(body))
        self.transport.close()
