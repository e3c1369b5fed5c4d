"""Requests that change which models are served."""

from typing import Any

from server.repository import Repository
from server.v2.errors import bad
from server.v2.fields import optional, read_object, read_parameters

MAX_BYTES = 1 << 20  # of a request, which holds parameters at most


async def repository_index(repository: Repository, body: bytes) -> list[dict[str, Any]]:
    """Every model that is or could be served; only those that are, where the body says `ready`."""
    only_ready = optional(read_object(body), "ready", bool) if body else False
    return [
        {
            "name": entry.name,
            "version": entry.version,
            "state": entry.state,
            **({"reason": entry.reason} if entry.reason else {}),
        }
        for entry in await repository.index()
        if entry.state == "READY" or not only_ready
    ]


async def load_model(repository: Repository, name: str, body: bytes) -> None:
    """Load what the configured repository has by this name, and nothing that a client sends.

    Raises a Problem of 400 where the body overrides the model's configuration or its files.
    """
    for parameter in read_parameters(read_object(body)) if body else ():
        if parameter == "config" or parameter.startswith("file:"):
            raise bad(f"the parameter {parameter} is refused: a model is what its bundle says, all of it")
    await repository.load(name)


async def unload_model(repository: Repository, name: str, body: bytes) -> None:
    """Serve the model no longer. It has no dependents: `unload_dependents` changes nothing."""
    if body:
        read_parameters(read_object(body))
    await repository.unload(name)
