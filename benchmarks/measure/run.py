"""Every subject under every load, in turns."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks.measure.messages import Opened, Subject
from benchmarks.measure.processes import SubjectFailedError, Worker
from benchmarks.measure.results import Row, failed_row, result_row
from benchmarks.measure.rounds import Load, Plan, measure
from benchmarks.measure.table import Display
from lct_deploy.errors import LctDeployError


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A subject with its worker, or with why there is none."""

    subject: Subject
    worker: Worker | None = None
    opened: Opened | None = None
    error: str = ""


def run(subjects: Sequence[Subject], plan: Plan, *, base: Subject) -> list[Row]:
    """Rows in the order of the loads, of each in that of the subjects, with ratios to those of `base`.

    What cannot be opened or fails stays in the rows as a failure. Raises LctDeployError where nothing at all
    could be measured.
    """
    rows: list[Row] = []
    with ExitStack() as held, Display(plan.turns) as display:
        # One after the other: opening is work too.
        entries = [_open(subject, held) for subject in subjects]
        for number, load in enumerate(plan.loads, 1):
            of_load = _measure(entries, load, plan, base, display)
            display.add(of_load, completed=number * plan.most)
            rows += of_load
    if all(row.error for row in rows):
        raise LctDeployError(f"nothing could be measured: {rows[0].error}")
    return rows


def _open(subject: Subject, held: ExitStack) -> Entry:
    try:
        worker = held.enter_context(Worker(subject))
        return Entry(subject=subject, worker=worker, opened=worker.opened())
    except SubjectFailedError as error:
        return Entry(subject=subject, error=str(error))


def _measure(entries: Sequence[Entry], load: Load, plan: Plan, base: Subject, display: Display) -> list[Row]:
    status = f"batch {load.batch}, {load.concurrency} at once"
    workers = [entry.worker for entry in entries if entry.worker is not None and not entry.error]
    measured = measure(workers, load, plan, on_round=lambda: display.advance(status))
    by_subject = {one.worker.subject: one for one in measured}
    beside = by_subject.get(base)
    return [
        failed_row(entry.subject, load, entry.error)
        if entry.opened is None
        else result_row(entry.opened, by_subject[entry.subject], beside)
        for entry in entries
    ]
