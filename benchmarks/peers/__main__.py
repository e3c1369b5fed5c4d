"""The same networks in every way there is to run them: `python -m benchmarks.peers install|run`.

Of one network and precision all have their turns in the same rounds, and ratios are to ours. Rows go to
benchmarks/results/peers-MACHINE.csv, in the place of those of the same network and precision; what is not
installed or fails stays in them with the reason.
"""

import sys
import time
from dataclasses import replace
from typing import Annotated

import typer

from benchmarks.environment import machine_name
from benchmarks.measure.results import Row
from benchmarks.measure.rounds import Load, Plan
from benchmarks.measure.run import run
from benchmarks.peers.catalogue import ARCHS, PRECISIONS, VENVS, subjects
from benchmarks.peers.prepare import prepare
from benchmarks.rows import RESULTS, replace_rows
from benchmarks.serving.command import run_app
from lct_deploy.cores import available_cores
from lct_deploy.errors import LctDeployError, UsageError
from lct_deploy.manifest import Precision
from lct_deploy.progress import track

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.command("install")
def install_command(
    again: Annotated[bool, typer.Option("--again", help="Also those that are there.")] = False,
) -> None:
    """Make their environments under build/peers, from pinned requirements."""
    wanted = [venv for venv in VENVS if again or not venv.installed]
    for venv in track(wanted, "installing", total=len(wanted)):
        if failure := venv.install():
            raise LctDeployError(f"{venv.name} was not installed: {failure}")


@app.command("run")
def run_command(
    arch: Annotated[str, typer.Option(help="With commas.")] = ",".join(ARCHS),
    precision: Annotated[str, typer.Option(help="With commas.")] = ",".join(PRECISIONS),
    seconds: Annotated[float, typer.Option(min=0.1, help="Of a turn.")] = 1.0,
    rounds: Annotated[int, typer.Option(min=1, help="At most.")] = 15,
    minutes: Annotated[float, typer.Option(help="No network begins after that.")] = 120.0,
) -> None:
    """Prepare and measure every network in every precision, at batches of 1 and 8."""
    loads = tuple(Load(batch=batch, concurrency=1) for batch in (1, 8))
    plan, began = Plan(loads=loads, seconds=seconds, most=rounds), time.monotonic()
    path = RESULTS / f"peers-{machine_name()}.csv"
    for name in arch.split(","):
        for wanted in precision.split(","):
            if time.monotonic() - began > 60 * minutes:
                print(f"not begun after {minutes:g} minutes: {name}, {wanted}", file=sys.stderr)
                continue
            rows = _measure(name, _checked(wanted), plan)
            replace_rows(path, [row.columns() for row in rows], by=("arch", "precision"))


def _measure(arch: str, precision: Precision, plan: Plan) -> list[Row]:
    chosen = subjects(prepare(arch, precision), precision, available_cores())
    rows = run(chosen, plan, base=chosen[0])
    # What could not be opened does not know what it would have been.
    return [replace(row, arch=arch, precision=precision) for row in rows]


def _checked(precision: str) -> Precision:
    if precision not in PRECISIONS:
        raise UsageError(f"unknown precision {precision!r}", hint=f"precisions are {', '.join(PRECISIONS)}")
    return precision


if __name__ == "__main__":
    run_app(app)
