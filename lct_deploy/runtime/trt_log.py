"""What TensorRT says, for whoever builds or runs an engine.

TensorRT keeps the first logger that it is given, for all builders and runtimes: so there is one for each
flavour, and its messages go to whoever listens. Of the verbose ones, which are many and some of them
large, only the list of an engine's layers is kept.
"""

import functools
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lct_deploy.runtime.flavours import Flavour

_LAYERS = "Layers:\n"
# Without a driver each real error is followed by one that says so.
_NO_DRIVER = "(cudaError 35:"


@dataclass
class Messages:
    """What was said while listening; `layers` is the builder's list of the engine's layers."""

    errors: list[str] = field(default_factory=list[str])
    warnings: list[str] = field(default_factory=list[str])
    layers: str = ""

    def add(self, severity: str, text: str) -> None:
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self.errors.append(text)
        elif severity == "WARNING":
            self.warnings.append(text)
        elif text.startswith(_LAYERS):
            self.layers = text

    def reasons(self) -> list[str]:
        """The errors, without those that only repeat that there is no driver, where there are others."""
        return [text for text in self.errors if _NO_DRIVER not in text] or self.errors


_listeners: dict[str, list[Messages]] = {}


@functools.cache
def logger(flavour: Flavour) -> Any:
    """The flavour's `ILogger`: what every builder, parser and runtime of this process is given."""
    trt = flavour.module
    listeners = _listeners.setdefault(flavour.name, [])

    class Logger(trt.ILogger):  # pyright: ignore[reportUntypedBaseClass]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            for messages in tuple(listeners):
                messages.add(severity.name, msg)

    return Logger()


@contextmanager
def listening(flavour: Flavour) -> Generator[Messages]:
    """Collect what the flavour says meanwhile, from any thread."""
    messages = Messages()
    logger(flavour)
    listeners = _listeners[flavour.name]
    listeners.append(messages)
    try:
        yield messages
    finally:
        listeners.remove(messages)
