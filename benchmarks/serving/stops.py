"""What stopping and reloading cost those who ask: `python -m benchmarks.serving.stops BUNDLE`.

A hundred times a server is stopped by SIGTERM while callers ask without a pause, then one server's model is
loaded anew a hundred times. A request is lost where its connection is closed after it was sent and before
its answer was there. A connection that is refused loses nothing: whoever is refused can ask elsewhere.
Rows in benchmarks/results/serving-stops-MACHINE.csv.
"""

import secrets
import shlex
import signal
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.environment import machine_name
from benchmarks.rows import RESULTS, write_rows
from benchmarks.serving.client import DUE, OUTCOME, Job, Recorded
from benchmarks.serving.command import run_command
from benchmarks.serving.connection import LOST, Outcome
from benchmarks.serving.contenders import running_ours
from benchmarks.serving.figures import OK
from benchmarks.serving.load import Load
from benchmarks.serving.requests import Target
from lct_deploy.bundle import open_bundle
from lct_deploy.errors import LctDeployError
from lct_deploy.progress import track

CALLERS = 8
MOMENTS = (0.2, 0.8)  # seconds of load before a signal, at random
STOP_SECONDS = 60.0  # for a server to end
LOAD_SECONDS = 600.0  # longer than any of it takes: the load is stopped
PAUSE_SECONDS = 0.2  # between reloads


@dataclass(frozen=True, kw_only=True)
class Row:
    """One SIGTERM or one reload. `code` is an exit code, or the status of the answer to the reload."""

    what: str
    number: int
    code: int
    seconds: float
    requests: int
    ok: int
    lost: int
    lost_idle: int  # of these, on connections that had been used before
    refused: int
    unanswered: int
    other: str  # answers with other statuses than 200


def main(
    bundle: Path,
    stops: Annotated[int, typer.Option(min=0, help="SIGTERMs.")] = 100,
    reloads: Annotated[int, typer.Option(min=0)] = 100,
    serve: Annotated[str, typer.Option(help="More options of `lct-deploy serve`.")] = "",
    output: Annotated[
        Path | None, typer.Option(help="Default: benchmarks/results/serving-stops-MACHINE.csv.")
    ] = None,
) -> None:
    """Stop and reload a server under load and count what is lost."""
    opened, options = open_bundle(bundle), shlex.split(serve)
    moments = np.random.default_rng(0).uniform(*MOMENTS, stops)
    rows = [
        stop(opened.path, options, number, float(moments[number]))
        for number in track(range(stops), "SIGTERM", total=stops)
    ]
    if reloads:
        rows += reload(opened.path, opened.manifest.name, options, reloads)
    if not rows:
        return
    write_rows(output or RESULTS / f"serving-stops-{machine_name()}.csv", [asdict(row) for row in rows])
    print("\n".join(summary(rows)))
    if failures := verdict(rows):
        raise LctDeployError("; ".join(failures))


def stop(bundle: Path, options: Sequence[str], number: int, moment: float) -> Row:
    """SIGTERM to a server after a moment of load, until it has ended and nobody can ask any more."""
    with running_ours(bundle, *options) as running, Load(running.where, _job(running.where)) as load:
        time.sleep(moment)
        began = time.perf_counter()
        running.server.signal(signal.SIGTERM)
        code = running.server.wait(STOP_SECONDS)
        seconds = time.perf_counter() - began
        if code is None:
            code = running.server.stop()
        return _row("SIGTERM", number, code, seconds, load.recorded().rows[:, OUTCOME].astype(int).tolist())


def reload(bundle: Path, name: str, options: Sequence[str], reloads: int) -> list[Row]:
    """Load the model of one server anew, again and again; requests count to the reload during or after which
    they were sent.
    """
    key = secrets.token_hex(16)
    answers: list[tuple[float, float, int]] = []  # when asked, when done, status
    with (
        running_ours(bundle, *options, environment={"LCT_ADMIN_KEYS": key}) as running,
        Load(running.where, _job(running.where)) as load,
    ):
        url = f"http://{running.where.host}:{running.where.port}/v2/repository/models/{name}/load"
        for _ in track(range(reloads), "reloading", total=reloads):
            began = time.perf_counter()
            status = _post(url, key)
            answers.append((began, time.perf_counter(), status))
            if status != OK:
                break
            time.sleep(PAUSE_SECONDS)
        load.stop()
        recorded = load.recorded()
        running.server.check()
    return _reloaded(answers, recorded)


def _reloaded(answers: Sequence[tuple[float, float, int]], recorded: Recorded) -> list[Row]:
    """Requests by the reload that was the last to begin before them."""
    begins = np.array([began for began, _, _ in answers]) - recorded.started
    which = np.maximum(np.searchsorted(begins, recorded.rows[:, DUE], side="right") - 1, 0)
    outcomes = recorded.rows[:, OUTCOME].astype(int)
    return [
        _row("reload", number, status, done - began, outcomes[which == number].tolist())
        for number, (began, done, status) in enumerate(answers)
    ]


def _job(where: Target) -> Job:
    return Job(
        host=where.host,
        port=where.port,
        loop="closed",
        seconds=LOAD_SECONDS,
        connections=CALLERS,
        stop_when_refused=True,
    )


def _post(url: str, key: str) -> int:
    request = urllib.request.Request(url, b"{}", {"Authorization": f"Bearer {key}"})  # noqa: S310 - http
    try:
        with urllib.request.urlopen(request, timeout=STOP_SECONDS) as answer:  # noqa: S310
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def _row(what: str, number: int, code: int, seconds: float, outcomes: Sequence[int]) -> Row:
    counts = Counter(outcomes)
    others = {status: n for status, n in sorted(counts.items()) if status > 0 and status != OK}
    return Row(
        what=what,
        number=number,
        code=code,
        seconds=round(seconds, 4),
        requests=len(outcomes) - counts[Outcome.REFUSED],
        ok=counts[OK],
        lost=sum(counts[outcome] for outcome in LOST),
        lost_idle=counts[Outcome.LOST_IDLE],
        refused=counts[Outcome.REFUSED],
        unanswered=counts[Outcome.TIMED_OUT],
        other="; ".join(f"{status}: {n}" for status, n in others.items()),
    )


def summary(rows: Sequence[Row]) -> list[str]:
    lines: list[str] = []
    for what in dict.fromkeys(row.what for row in rows):
        own = [row for row in rows if row.what == what]
        seconds = np.percentile([row.seconds for row in own], (50, 100))
        lines.append(
            f"{len(own)} of {what}: {sum(row.requests for row in own)} requests, "
            f"{sum(row.lost for row in own)} lost ({sum(row.lost_idle for row in own)} of these on used "
            f"connections), {sum(row.unanswered for row in own)} unanswered, "
            f"median {seconds[0]:.3f} s, longest {seconds[1]:.3f} s, codes "
            f"{dict(Counter(row.code for row in own))}"
        )
    return lines


def verdict(rows: Sequence[Row]) -> list[str]:
    """What is wrong, in sentences."""
    lost = sum(row.lost + row.unanswered for row in rows)
    failures = [f"{lost} requests were lost"] if lost else []
    for what, good in (("SIGTERM", 0), ("reload", OK)):
        bad = sorted({row.code for row in rows if row.what == what and row.code != good})
        failures += [f"{what} ended with {', '.join(map(str, bad))}"] if bad else []
    if wrong := sorted({row.other for row in rows if any(p.startswith("5") for p in row.other.split("; "))}):
        failures.append(f"answers with {' and '.join(wrong)}")
    return failures


if __name__ == "__main__":
    run_command(main)
