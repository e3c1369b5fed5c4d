"""A running server under load: how throughput and latency grow with it, and where the knee is.

Closed loops, of so many callers, find what the server can do at most; open loops, of Poisson arrivals at
shares of that, find the latency that independent callers meet. Latency of an open loop counts from when a
request was due: what waits in the client, since the server stalls, is not omitted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.serving.figures import Figures
from benchmarks.serving.load import closed_loop, open_loop
from benchmarks.serving.photos import COUNT, photos
from benchmarks.serving.requests import Body, Target, file_tensor, raw, target
from lct_deploy.errors import LctDeployError

SHARES = (0.3, 0.5, 0.7, 0.8, 0.9)  # of the highest throughput that closed loops found
FEW = 1_000_000  # pixels above which fewer photographs are made: each takes seconds
HELD = 0.95  # share of what it is asked that a server has to answer in time to be said to hold a rate

Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class LoadPlan:
    """What a server gets: photographs of each size, in closed loops of callers and open loops of rates."""

    url: str
    sizes: tuple[Size, ...]
    callers: tuple[int, ...]
    rates: tuple[float, ...] | None  # a second, of open loops; None: SHARES of what the closed loops found
    seconds: float


@dataclass(frozen=True, kw_only=True)
class LoadRow:
    """One load; `callers` of a closed loop, `rate` of an open one."""

    url: str
    width: int
    height: int
    bytes: int  # of a request's body, on average
    loop: Literal["closed", "open"]
    callers: int | None = None
    rate: float | None = None
    figures: Figures

    @property
    def holds(self) -> bool:
        """Whether everything was answered with 200, in an open loop as fast as it was asked for.

        That is not exactly the rate: arrivals are chance.
        """
        figures = self.figures
        asked = figures.requests / figures.seconds
        enough = self.rate is None or figures.throughput >= HELD * asked
        return enough and figures.ok == figures.requests > 0

    def columns(self) -> dict[str, object]:
        """The row as it stands in a CSV file."""
        own = {name: value for name, value in vars(self).items() if name != "figures"}
        return {**own, **self.figures.row()}


def load_server(plan: LoadPlan) -> list[LoadRow]:
    """Rows in the order of the sizes, closed loops first.

    Raises UsageError for a URL that is none, LctDeployError where the server answers nothing with 200.
    """
    rows: list[LoadRow] = []
    for size in plan.sizes:
        bodies = _bodies(plan.url, size)
        where = target(plan.url, bodies)
        for row in _loads(plan, where, size, sum(len(body.content) for body in bodies) // len(bodies)):
            if not row.figures.ok:
                raise LctDeployError(f"{plan.url}: no request was answered with 200: {row.figures}")
            rows.append(row)
    return rows


def knees(rows: Sequence[LoadRow]) -> list[LoadRow]:
    """Of each size the open loop that held its rate with the most throughput for its mean latency.

    That is Kleinrock's power: below it the server has room, above it latency grows faster than throughput.
    """
    held = [row for row in rows if row.rate is not None and row.holds]
    sizes = dict.fromkeys((row.width, row.height) for row in held)
    return [max((row for row in held if (row.width, row.height) == size), key=_power) for size in sizes]


def _power(row: LoadRow) -> float:
    latency = row.figures.latency
    return row.figures.throughput / latency.mean if latency is not None else 0.0


def _loads(plan: LoadPlan, where: Target, size: Size, length: int) -> Iterator[LoadRow]:
    best = 0.0
    for callers in plan.callers:
        figures = closed_loop(
            where, connections=callers, seconds=plan.seconds, description=f"{callers} callers"
        )
        best = max(best, figures.throughput)
        yield _row(plan, size, length, figures, loop="closed", callers=callers)
    rates = [round(share * best, 1) for share in SHARES] if plan.rates is None else plan.rates
    for rate in rates:
        figures = open_loop(where, rate=rate, seconds=plan.seconds, description=f"{rate:g} requests/s")
        yield _row(plan, size, length, figures, loop="open", rate=rate)


def _row(
    plan: LoadPlan,
    size: Size,
    length: int,
    figures: Figures,
    *,
    loop: Literal["closed", "open"],
    callers: int | None = None,
    rate: float | None = None,
) -> LoadRow:
    return LoadRow(
        url=plan.url,
        width=size[0],
        height=size[1],
        bytes=length,
        loop=loop,
        callers=callers,
        rate=rate,
        figures=figures,
    )


def _bodies(url: str, size: Size) -> list[Body]:
    """Photographs as the route takes them: as they are, or in a V2 request."""
    made = photos(COUNT if size[0] * size[1] <= FEW else 2, size)
    encode = file_tensor if "/v2/" in url else raw
    return [encode(photo) for photo in made]
