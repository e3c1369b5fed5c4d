"""Rounds: in each, every subject has a turn; they go on until what the turns give no longer varies."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.measure.messages import Taken, Turn
from benchmarks.measure.processes import SubjectFailedError, Worker

STABLE_ROUNDS = 6  # that have to agree, and that are reported
TOLERANCE = 0.05  # coefficient of variation of their throughput


@dataclass(frozen=True, kw_only=True)
class Load:
    """Images at once, and callers at once."""

    batch: int
    concurrency: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure and how long."""

    loads: tuple[Load, ...]
    seconds: float  # of a turn
    most: int  # rounds

    @property
    def turns(self) -> int:
        """Rounds of all loads at most."""
        return len(self.loads) * self.most


@dataclass
class Measured:
    """The turns of one subject under one load, the last of which count; or why there are none."""

    worker: Worker
    load: Load
    turns: list[Taken] = field(default_factory=list)
    failure: SubjectFailedError | None = None

    @property
    def counted(self) -> list[Taken]:
        return self.turns[-STABLE_ROUNDS:]

    @property
    def variation(self) -> float:
        """Coefficient of variation of the counted turns' throughput."""
        rates = [len(turn.milliseconds) / turn.seconds for turn in self.counted]
        return float(np.std(rates) / np.mean(rates))

    @property
    def stable(self) -> bool:
        return len(self.turns) >= STABLE_ROUNDS and self.variation <= TOLERANCE

    def take(self, seconds: float) -> Taken | None:
        """One more turn; None, now and from then on, where the subject fails."""
        if self.failure is not None:
            return None
        turn = Turn(batch=self.load.batch, concurrency=self.load.concurrency, seconds=seconds)
        try:
            return self.worker.take(turn)
        except SubjectFailedError as error:
            self.failure = error
            return None


def measure(
    workers: Sequence[Worker], load: Load, plan: Plan, *, on_round: Callable[[], None]
) -> list[Measured]:
    """A warm-up, then rounds until all are stable, at most `plan.most` of them.

    Every other round goes backwards, so that nobody is always the one after somebody.
    """
    measured = [Measured(worker=worker, load=load) for worker in workers]
    for one in measured:
        one.take(plan.seconds)
    for number in range(plan.most):
        for one in measured[:: -1 if number % 2 else 1]:
            if (taken := one.take(plan.seconds)) is not None:
                one.turns.append(taken)
        on_round()
        if all(one.failure is not None or one.stable for one in measured):
            break
    return measured
