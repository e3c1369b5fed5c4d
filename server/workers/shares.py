"""What of the settings each worker is told, and how: as variables of its environment, as anybody could."""

import os
from collections.abc import Mapping

import orjson
from pydantic import SecretStr

from server.settings import ServerSettings

PREFIX = "LCT_"


def share_of(settings: ServerSettings) -> ServerSettings:
    """For one worker: its part of what may wait and be held, at least what one request may need."""
    workers, held = settings.processes, settings.max_buffered_bytes
    return settings.model_copy(
        update={
            "max_queue": max(settings.max_queue // workers, settings.max_images),
            "max_buffered_bytes": min(held, max(held // workers, settings.max_body_bytes)),
        }
    )


def environment_of(settings: ServerSettings) -> dict[str, str]:
    """Variables that make `ServerSettings()` equal `settings`; all others as they are in this process."""
    names = {f"{PREFIX}{name}".upper() for name in ServerSettings.model_fields}
    others = {name: value for name, value in os.environ.items() if name.upper() not in names}
    values: Mapping[str, object] = {name: getattr(settings, name) for name in ServerSettings.model_fields}
    told = {f"{PREFIX}{name.upper()}": _text(value) for name, value in values.items() if value is not None}
    return {**others, **told}


def _text(value: object) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, tuple):
        return orjson.dumps(value, default=str).decode()
    return str(value)
