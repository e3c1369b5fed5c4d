"""Our server beside others over the same graph: `python -m benchmarks.serving.compare BUNDLE`.

Each server gets the same photographs from the same client, on the same cores as the client; it is started
anew for every round, so that no other is in its way, and the order changes from round to round. A first
round finds what each can do and, of the ways in which it can use the cores, the best one. Then, a round:

    closed         so many callers without a pause (wrk): answers a second
    open own       Poisson arrivals at a share of what this server can do: its latency
    open common    the same at the rate of the slowest: latencies that can be compared

A server that fails stays in the table with the reason. Rows go to
benchmarks/results/serving-compare-MACHINE.csv.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.environment import machine_name
from benchmarks.rows import RESULTS, write_rows
from benchmarks.serving.command import run_command
from benchmarks.serving.contenders import OURS, Contender, contenders
from benchmarks.serving.load import open_loop, throughput
from benchmarks.serving.peers.__main__ import CHECKED, choose
from benchmarks.serving.peers.running import Running, check_answers, expected_answers
from benchmarks.serving.photos import photos
from benchmarks.serving.ranking import FIRST, Case, Row, best_shapes, slowest, summary
from benchmarks.serving.wrk import required_wrk
from lct_deploy.bundle import open_bundle
from lct_deploy.errors import LctDeployError, UsageError
from lct_deploy.predictions import Prediction
from lct_deploy.progress import progress_bar

WARM_UP_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured of each server in a round; `load` is a share of what a server can do."""

    connections: tuple[int, ...]
    seconds: float
    load: float
    expected: list[list[Prediction]]


def main(
    bundle: Annotated[Path, typer.Argument(help="Its graph is what all servers run.")],
    peer: Annotated[list[str] | None, typer.Option(help="Only these; default: all.")] = None,
    serve: Annotated[
        list[str] | None, typer.Option(help="Try our server with these options too, as '--decode-threads 1'.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Beside the first, which finds the rates.")] = 5,
    seconds: Annotated[float, typer.Option(min=1, help="Of each load.")] = 8.0,
    connections: Annotated[str, typer.Option(help="Of the closed loops.")] = "1,8,32",
    load: Annotated[float, typer.Option(min=0.05, max=0.95, help="Of the open loops.")] = 0.7,
    minutes: Annotated[float, typer.Option(min=0, help="No round starts that would not end by then.")] = 60.0,
    output: Annotated[
        Path | None, typer.Option(help="Default: benchmarks/results/serving-compare-MACHINE.csv.")
    ] = None,
) -> None:
    """Compare servers of images over one graph."""
    wrk = required_wrk()
    opened = open_bundle(bundle)
    expected = expected_answers(opened, photos()[:CHECKED])
    plan = Plan(connections=_numbers(connections), seconds=seconds, load=load, expected=expected)
    with contenders(opened, choose(peer), serve) as found:
        rows = run_rounds(found, plan, rounds, 60 * minutes)
    path = output or RESULTS / f"serving-compare-{machine_name()}.csv"
    write_rows(path, [row.columns() for row in rows], also={"bundle": opened.manifest.arch, "wrk": wrk})
    print("\n".join(summary(rows, OURS)))
    if OURS not in best_shapes(rows):
        raise LctDeployError("our own server was not measured")


def run_rounds(found: Sequence[Contender], plan: Plan, rounds: int, limit: float) -> list[Row]:
    """The first round over all shapes, then rounds over the best one of each server."""
    began = time.monotonic()
    rows: list[Row] = []
    with progress_bar() as bar:
        task = bar.add_task("measuring", total=len(found), status="")

        def measured(contender: Contender, number: int, common: float) -> None:
            bar.update(task, status=f"round {number}: {contender.name} {contender.shape}")
            rows.extend(measure(contender, plan, number, common))
            bar.advance(task)

        for contender in found:
            measured(contender, FIRST, 0.0)
        shapes = best_shapes(rows).items()
        chosen = [contender for contender in found if (contender.name, contender.shape) in shapes]
        common = plan.load * slowest(rows)
        bar.update(task, total=len(found) + rounds * len(chosen))
        for number in range(1, rounds + 1):
            round_began = time.monotonic()
            for index in np.random.default_rng(number).permutation(len(chosen)):
                measured(chosen[index], number, common)
            now = time.monotonic()
            if number < rounds and now - began + (now - round_began) > limit:
                print(f"stopped after {number} of {rounds} rounds: no time for another", file=sys.stderr)
                break
    return rows


def measure(contender: Contender, plan: Plan, number: int, common: float) -> list[Row]:
    """One round on one server; `common` is the rate of the slowest one, 0 in the first round."""
    case = Case(server=contender.name, version=contender.version, shape=contender.shape, round=number)
    rows: list[Row] = []
    try:
        with contender.start() as running:
            check_answers(running.where, plan.expected)
            throughput(running.where, connections=max(plan.connections), seconds=WARM_UP_SECONDS)
            for row in _loads(running, plan, case, common):
                running.server.check()
                rows.append(replace(row, start_seconds=running.start_seconds))
    except LctDeployError as error:
        rows.append(Row(case=case, status=str(error).replace("\n", "; ")))
    return rows


def _loads(running: Running, plan: Plan, case: Case, common: float) -> Iterator[Row]:
    """Closed loops and, in later rounds, open loops at a share of what the server has just done."""
    most = 0.0
    for connections in plan.connections:
        figures = throughput(running.where, connections=connections, seconds=plan.seconds)
        most = max(most, figures.throughput)
        yield Row(case=replace(case, loop="closed", connections=connections), figures=figures)
    for loop, rate in {"open own": plan.load * most, "open common": common}.items():
        if common > 0 and rate > 0:
            figures = open_loop(running.where, rate=rate, seconds=plan.seconds, seed=case.round)
            yield Row(case=replace(case, loop=loop, rate=round(rate, 3)), figures=figures)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"{text!r} is not a list such as 1,8,32") from error
    if min(numbers) < 1:
        raise UsageError(f"{text!r}: at least one connection")
    return numbers


if __name__ == "__main__":
    run_command(main)
