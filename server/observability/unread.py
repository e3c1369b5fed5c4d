"""Requests that no application gets to see, as their heads are refused: counted and logged all the same."""

import logging

from server.observability.logs import line_writer
from server.observability.metrics import Metrics
from server.observability.middleware import UNMATCHED, access
from server.observability.record import RequestRecord


class UnreadRequests:
    """They have no method, no route and no model."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics, self._write = metrics, line_writer(access)

    def add(self, status: int, why: str, client: str | None) -> None:
        """A request that `client` began was answered with `status`, or its connection closed."""
        record = RequestRecord("", None, status=status)
        self._metrics.count(record, "other", UNMATCHED)
        fields = {"route": UNMATCHED, "status": status, "outcome": record.outcome, "client": client}
        self._write(logging.INFO, f"{status}: {why}", fields)
