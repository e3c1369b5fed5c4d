"""What is reported of a load: how many, what went wrong, how fast, how long."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.latency import Latency
from benchmarks.serving.connection import Outcome

OK = 200
NAMES = {
    Outcome.REFUSED: "refused",
    Outcome.LOST: "lost",
    Outcome.LOST_IDLE: "lost on a connection used before",
    Outcome.TIMED_OUT: "no answer in time",
}


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Of one load. `latency` is of the answers with status 200, from when each request was due.

    `late_ms` is by how much the client itself was late, at the 99th percentile; where that is not small
    beside the latencies, the client measured itself. Where only the throughput was measured, both are None.
    """

    requests: int
    ok: int
    errors: Mapping[str, int]  # by status, or by what happened in the place of an answer
    seconds: float
    throughput: float  # answers with status 200 in a second
    latency: Latency | None
    late_ms: float | None

    def row(self) -> dict[str, object]:
        """As columns of a result file."""
        errors = "; ".join(f"{name}: {count}" for name, count in self.errors.items())
        return {
            "requests": self.requests,
            "ok": self.ok,
            "errors": errors,
            "measured_seconds": self.seconds,
            "throughput": self.throughput,
            **Latency.columns(self.latency),
            "late_ms": self.late_ms,
        }

    def __str__(self) -> str:
        parts = [f"{self.throughput:.1f} requests/s"]
        if self.latency is not None:
            parts += [f"p50 {self.latency.p50:.2f} ms", f"p99 {self.latency.p99:.2f} ms"]
        parts += [f"{count} {name}" for name, count in self.errors.items()]
        return ", ".join(parts)


def figures_of(
    due: NDArray[np.float64],
    sent: NDArray[np.float64],
    over: NDArray[np.float64],
    outcome: NDArray[np.float64],
    *,
    seconds: float,
) -> Figures:
    """From seconds since the start: when requests were due, sent and over.

    What is answered after `seconds` counts with its latency, and not to the throughput.
    """
    good = outcome == OK
    return Figures(
        requests=len(due),
        ok=int(good.sum()),
        errors=_errors(outcome[~good]),
        seconds=round(seconds, 3),
        throughput=round(float((good & (over <= seconds)).sum()) / seconds, 3),
        latency=Latency.of(1e3 * (over - due)[good]),
        late_ms=round(1e3 * float(np.percentile(sent - due, 99)), 3) if len(due) else None,
    )


def _errors(outcomes: NDArray[np.float64]) -> dict[str, int]:
    counted = Counter(int(outcome) for outcome in outcomes)
    return {
        NAMES[Outcome(outcome)] if outcome < 0 else str(outcome): count
        for outcome, count in sorted(counted.items(), reverse=True)
    }
