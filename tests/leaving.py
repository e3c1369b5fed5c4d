"""Clients that keep asking while a server stops, and know what became of each request."""

import socket
import threading
from collections import Counter
from urllib.parse import urlsplit


class Callers:
    """Threads that each ask on a new connection, again and again, until nobody lets them in."""

    def __init__(self, url: str, request: bytes, count: int) -> None:
        self.outcomes: Counter[str] = Counter()
        self._address = (urlsplit(url).hostname, urlsplit(url).port)
        self._request = request
        self._threads = [threading.Thread(target=self._keep_asking) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def join(self) -> "Counter[str]":
        """How often what happened: `answered`, `lost` once connected, `refused` before."""
        for thread in self._threads:
            thread.join()
        return self.outcomes

    def _keep_asking(self) -> None:
        while True:
            try:
                connection = socket.create_connection(self._address, timeout=60)
            except ConnectionError:  # nothing has been sent
                self.outcomes["refused"] += 1
                return
            with connection:
                self.outcomes[self._ask(connection)] += 1

    def _ask(self, connection: socket.socket) -> str:
        try:
            connection.sendall(self._request)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        except OSError as error:
            return f"lost: {error!r}"
        return "answered" if answer.startswith(b"HTTP/1.1 200") else f"lost: {answer[:60]!r}"


def closing_request(path: str, body: bytes, kind: str) -> bytes:
    """A whole POST request, after whose answer the server closes the connection."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {kind}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
