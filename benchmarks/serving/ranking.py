"""What servers did in a comparison: its rows, which shape of a server is the best, the table."""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from benchmarks.latency import Latency
from benchmarks.quartiles import Quartiles
from benchmarks.rows import parse_rows
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

    @classmethod
    def of(cls, columns: Mapping[str, str]) -> Self:
        """From those of a file; what went wrong with single requests stays there."""
        (case,) = parse_rows(Case, [columns])
        figures = Figures(
            requests=int(columns["requests"]),
            ok=int(columns["ok"]),
            errors={},
            seconds=float(columns["measured_seconds"]),
            throughput=float(columns["throughput"]),
            latency=Latency.read(columns),
            late_ms=float(columns["late_ms"]) if columns["late_ms"] else None,
        )
        return cls(
            case=case,
            status=columns["status"],
            start_seconds=float(columns["start_seconds"]),
            figures=figures,
        )


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A server over all rounds but the first, at the medians; latencies are the 50th and 99th percentile."""

    server: str
    answers: float  # a second, of closed loops
    ours_over_it: Quartiles | None  # in the same round
    own: tuple[float, float] | None  # ms, at a share of what it can do
    common: tuple[float, float] | None  # ms, at the same rate as all others


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


def standings(rows: Sequence[Row], ours: str) -> list[Standing]:
    """Of each server that was measured, in the order of their names."""
    per_round = _per_round(rows)
    own = per_round.get(ours, {})
    return [
        Standing(
            server=name,
            answers=statistics.median(most.values()),
            ours_over_it=Quartiles.of(
                value / most[number] for number, value in own.items() if number in most
            ),
            own=_latency(rows, name, "open own"),
            common=_latency(rows, name, "open common"),
        )
        for name, most in per_round.items()
    ]


def failures(rows: Sequence[Row]) -> list[str]:
    """Which server in which shape failed with what, each once."""
    failed = (row for row in rows if row.status != "ok")
    return list(dict.fromkeys(f"{row.case.server} {row.case.shape}: {row.status}" for row in failed))


def summary(rows: Sequence[Row], ours: str) -> list[str]:
    """A line a server: medians over the rounds, and ours over theirs round by round."""
    lines = [
        f"{'':<24} {'answers/s':>10} {'ours over it [quartiles]':>25} {'own p50/p99 ms':>18} "
        f"{'common p50/p99 ms':>18}"
    ]
    lines += [
        f"{one.server:<24} {one.answers:>10.1f} {one.ours_over_it or '–'!s:>25} {_shown(one.own):>18} "
        f"{_shown(one.common):>18}"
        for one in standings(rows, ours)
    ]
    return lines + failures(rows)


def _per_round(rows: Sequence[Row]) -> Mapping[str, Mapping[int, float]]:
    """By server, the most answers a second of each round but the first."""
    found: defaultdict[str, dict[int, float]] = defaultdict(dict)
    for number in sorted({row.case.round for row in rows} - {FIRST}):
        for (name, _), most in capacities(rows, number).items():
            found[name][number] = most
    return dict(sorted(found.items()))


def _latency(rows: Sequence[Row], name: str, loop: str) -> tuple[float, float] | None:
    latencies = [row.figures.latency for row in rows if (row.case.server, row.case.loop) == (name, loop)]
    found = [latency for latency in latencies if latency is not None]
    if not found:
        return None
    return statistics.median(one.p50 for one in found), statistics.median(one.p99 for one in found)


def _shown(latency: tuple[float, float] | None) -> str:
    return f"{latency[0]:.1f} / {latency[1]:.1f}" if latency else "–"
