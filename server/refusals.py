"""Requests that are well-formed and yet not answered: the server is too busy, too slow, or broken."""

from typing import ClassVar

from server.observability.record import Outcome
from server.problems import Problem


class Refusal(Problem):
    """What a request that was not answered is counted as."""

    outcome: ClassVar[Outcome]


class ServerBusyError(Refusal):
    """The queue is full; `retry_after` seconds are what it takes to drain at the rate measured."""

    outcome = "rejected"

    def __init__(self, detail: str, retry_after: int) -> None:
        super().__init__(
            503, f"too busy: {detail}; try again in {retry_after} s", {"Retry-After": str(retry_after)}
        )


class EngineLostError(Refusal):
    """The engine died with this request."""

    outcome = "engine_lost"

    def __init__(self, detail: str, retry_after: int) -> None:
        super().__init__(503, detail, {"Retry-After": str(retry_after)})


class EngineAbsentError(EngineLostError):
    """There is no engine at the moment, so nothing of this request was lost."""

    outcome = "unavailable"


class DeadlineError(Refusal):
    """The time that the request was given is over."""

    outcome = "expired"

    def __init__(self, detail: str) -> None:
        super().__init__(504, detail)


class EngineFailedError(Refusal):
    """The runtime raised an error for this request alone; the log says which."""

    outcome = "failed"

    def __init__(self, detail: str) -> None:
        super().__init__(500, f"{detail}; the server's log says more")
