"""The log, to stderr: one JSON object a line for machines, or text for people.

The formatter is our own, on orjson: with python-json-logger the line of a request would cost more than
all else that is done to observe it (docs/decisions/0015).
"""

import contextlib
import json
import logging
import re
import sys
import time
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, Literal

import orjson

from server.observability.record import current_record

LogFormat = Literal["json", "text"]
LineWriter = Callable[[int, str, Mapping[str, Any]], None]  # level, message, fields
# What could end a line, or make a terminal show something else than what was written.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def configure_logging(level: str, log_format: LogFormat | None, **fields: str) -> None:
    """Everything that this process logs goes to stderr from now on; `fields` are in every JSON line."""
    root = logging.getLogger()
    as_json = (log_format or default_format()) == "json"
    root.handlers[:] = [_StderrHandler(_JsonFormatter(fields) if as_json else _TextFormatter())]
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    # Neither format tells them, and finding them out takes time for each line.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


def default_format() -> LogFormat:
    """Text where a person reads along."""
    return "text" if sys.stderr.isatty() else "json"


def line_writer(logger: logging.Logger) -> LineWriter:
    """What writes a line with fields as `logger` would, for lines that are written all the time.

    Where `configure_logging` has had its say, it takes less than half of the time that the logger takes.
    """
    handlers = logging.getLogger().handlers
    if len(handlers) == 1 and isinstance(handlers[0], _StderrHandler):
        return partial(handlers[0].write, logger.name)

    def write(level: int, message: str, fields: Mapping[str, Any]) -> None:
        logger.log(level, message, extra={"fields": fields})

    return write


class _JsonFormatter(logging.Formatter):
    """`ts`, `level`, `logger`, `message`, which request, then the `fields` that were logged with it."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        super().__init__()
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        if record.exc_info:
            fields = {**fields, "exception": self.formatException(record.exc_info)}
        return self.line(record.created, record.name, record.levelno, record.getMessage(), fields)

    def line(self, at: float, logger: str, level: int, message: str, fields: Mapping[str, Any]) -> str:
        line: dict[str, Any] = {
            "ts": _timestamp(at),
            "level": logging.getLevelName(level).lower(),
            "logger": logger,
            "message": message,
            **self._fields,
        }
        if (request := current_record()) is not None:
            line["request_id"] = request.request_id
            if request.trace is not None:
                line["trace_id"], line["span_id"] = request.trace.trace_id, request.trace.span_id
        line |= fields
        return _dumps(line)


class _TextFormatter(logging.Formatter):
    """A message is one line, whatever is in it; what an exception says follows, indented."""

    def format(self, record: logging.LogRecord) -> str:
        line = self.line(record.created, record.name, record.levelno, record.getMessage(), {})
        if record.exc_info:
            trace = self.formatException(record.exc_info).split("\n")
            line = "\n    ".join((line, *map(_escape, trace)))
        return line

    def line(self, at: float, logger: str, level: int, message: str, fields: Mapping[str, Any]) -> str:
        line = f"{logging.getLevelName(level)}:     {_escape(message)}"
        request = current_record()
        return line if request is None else f"{line} [{request.request_id}]"


class _StderrHandler(logging.Handler):
    """To whatever is stderr at the moment, which writes at the end of each line."""

    def __init__(self, formatter: _JsonFormatter | _TextFormatter) -> None:
        super().__init__()
        self._formatter = formatter

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self._formatter.format(record) + "\n")
        except Exception:
            self.handleError(record)

    def write(self, logger: str, level: int, message: str, fields: Mapping[str, Any]) -> None:
        """As if a logger had been told so, but for the making of a LogRecord."""
        with contextlib.suppress(OSError):  # nobody reads, by which a request is not to fail
            sys.stderr.write(self._formatter.line(time.time(), logger, level, message, fields) + "\n")


def _dumps(line: Mapping[str, Any]) -> str:
    try:
        text = orjson.dumps(line, default=str).decode()
    except TypeError:  # text that is not Unicode, as in the names of some files
        text = json.dumps(line, default=str)
    return text if text.isascii() else _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _timestamp(seconds: float) -> str:
    return f"{_whole_second(int(seconds))}.{int(seconds % 1 * 1000):03d}Z"


@lru_cache(maxsize=1)  # many lines in a second
def _whole_second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _escape(text: str) -> str:
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
