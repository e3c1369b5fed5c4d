"""Requests that are well-formed and yet not answered: the server is too busy, too slow, or broken."""

from server.problems import Problem


class ServerBusyError(Problem):
    """The queue is full; `retry_after` seconds are what it takes to drain at the rate measured."""

    def __init__(self, detail: str, retry_after: int) -> None:
        super().__init__(
            503, f"too busy: {detail}; try again in {retry_after} s", {"Retry-After": str(retry_after)}
        )


class EngineLostError(Problem):
    """The engine died with this request, or there is none at the moment."""

    def __init__(self, detail: str, retry_after: int) -> None:
        super().__init__(503, detail, {"Retry-After": str(retry_after)})


class DeadlineError(Problem):
    """The time that the request was given is over."""

    def __init__(self, detail: str) -> None:
        super().__init__(504, detail)


class EngineFailedError(Problem):
    """The runtime raised an error for this request alone; the log says which."""

    def __init__(self, detail: str) -> None:
        super().__init__(500, f"{detail}; the server's log says more")
