"""What servers did in a comparison: its rows, which shape of a server is the best, the table."""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.serving.figures import Figures

FIRST = 0  # the round that finds out what each server can do
NOTHING = Figures(requests=0, ok=0, errors={}, seconds=0, throughput=0, latency=None, late_ms=None)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One load on one server. `loop` is closed, open own or open common."""

    server: str
    version: str
    shape: str
    round: int
    loop: str = "start"
    connections: int = 0  # of a closed loop
    rate: float = 0.0  # of an open one


@dataclass(frozen=True, kw_only=True)
class Row:
    """What came of it; `status` is "ok", or why there are no figures."""

    case: Case
    status: str = "ok"
    start_seconds: float = 0.0
    figures: Figures = NOTHING

    def columns(self) -> dict[str, Any]:
        own = {"status": self.status, "start_seconds": round(self.start_seconds, 3)}
        return {**vars(self.case), **own, **self.figures.row()}


def capacities(rows: Sequence[Row], number: int = FIRST) -> dict[tuple[str, str], float]:
    """The most answers a second of each server in a round, by name and shape."""
    most: defaultdict[tuple[str, str], float] = defaultdict(float)
    for row in rows:
        if row.case.round == number and row.case.loop == "closed":
            key = row.case.server, row.case.shape
            most[key] = max(most[key], row.figures.throughput)
    return {key: value for key, value in most.items() if value > 0}


def best_shapes(rows: Sequence[Row]) -> dict[str, str]:
    """Of each server the shape that did most in the first round; servers that never answered have none."""
    most = capacities(rows)
    return {name: shape for (name, shape), _ in sorted(most.items(), key=lambda item: item[1])}


def slowest(rows: Sequence[Row]) -> float:
    """What the slowest server did in its best shape."""
    most, shapes = capacities(rows), best_shapes(rows)
    return min((most[item] for item in shapes.items()), default=0.0)


def summary(rows: Sequence[Row], ours: str) -> list[str]:
    """A line a server: medians over the rounds, and ours over theirs round by round."""
    lines = [
        f"{'':<24} {'answers/s':>10} {'ours over it [quartiles]':>25} {'own p50/p99 ms':>18} "
        f"{'common p50/p99 ms':>18}"
    ]
    per_round = _per_round(rows)
    for name, most in per_round.items():
        ratios = [value / most[number] for number, value in per_round.get(ours, {}).items() if number in most]
        lines.append(
            f"{name:<24} {statistics.median(most.values()):>10.1f} {_quartiles(ratios):>25} "
            f"{_latency(rows, name, 'open own'):>18} {_latency(rows, name, 'open common'):>18}"
        )
    failed = {f"{r.case.server} {r.case.shape}: {r.status}": None for r in rows if r.status != "ok"}
    return lines + list(failed)


def _per_round(rows: Sequence[Row]) -> Mapping[str, Mapping[int, float]]:
    """By server, the most answers a second of each round but the first."""
    found: defaultdict[str, dict[int, float]] = defaultdict(dict)
    for number in sorted({row.case.round for row in rows} - {FIRST}):
        for (name, _), most in capacities(rows, number).items():
            found[name][number] = most
    return dict(sorted(found.items()))


def _quartiles(values: Sequence[float]) -> str:
    if not values:
        return "–"
    first, median, third = np.quantile(values, (0.25, 0.5, 0.75))
    return f"{median:.2f} [{first:.2f}, {third:.2f}]"


def _latency(rows: Sequence[Row], name: str, loop: str) -> str:
    latencies = [row.figures.latency for row in rows if (row.case.server, row.case.loop) == (name, loop)]
    found = [latency for latency in latencies if latency is not None]
    if not found:
        return "–"
    p50, p99 = (statistics.median(getattr(latency, key) for latency in found) for key in ("p50", "p99"))
    return f"{p50:.1f} / {p99:.1f}"
