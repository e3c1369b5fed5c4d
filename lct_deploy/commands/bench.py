"""`lct-deploy bench`: bundles in turns, or a running server under load."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lct_deploy.atomic import check_writable
from lct_deploy.bundle import read_manifest
from lct_deploy.commands.options import (
    JsonOption,
    ProviderOption,
    parse_cores,
    parse_counts,
    parse_precision,
    parse_rates,
    parse_runtime_options,
    parse_sizes,
)
from lct_deploy.commands.shared import announce, extra, print_wide
from lct_deploy.errors import LctDeployError, UsageError
from lct_deploy.runtime.select import check_known

if TYPE_CHECKING:
    from benchmarks.measure.messages import Subject
    from benchmarks.measure.rounds import Plan

TURN_SECONDS, LOAD_SECONDS = 0.25, 5.0
CALLERS = "1,2,4,8,16"


def bench_command(
    bundles: Annotated[
        list[Path] | None, typer.Argument(help="Bundles; several are measured in turns.")
    ] = None,
    runtime: Annotated[
        str,
        typer.Option(help="One or more of onnxruntime, openvino, tensorrt and tensorrt-rtx, with commas."),
    ] = "onnxruntime",
    provider: ProviderOption = None,
    precision: Annotated[
        str | None, typer.Option(help="One or more, with commas; default: what each was exported for.")
    ] = None,
    batch: Annotated[str, typer.Option(help="Images at once, as 1,8,32.")] = "1",
    concurrency: Annotated[
        str | None, typer.Option(help=f"Callers at once; default: 1, with --url {CALLERS}.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of one inference; default: the cores.")] = None,
    cores: Annotated[str | None, typer.Option(help="To run on, as 0,1; default: the system chooses.")] = None,
    vs: Annotated[
        Path | None, typer.Option(help="The bundle that ratios are against; default: the first.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Load a server instead, such as http://127.0.0.1:8000/v1/classify.")
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(help="With --url: requests a second; default: shares of what the callers reached."),
    ] = None,
    size: Annotated[str, typer.Option(help="With --url: JPEG files, as 500x375,4000x3000.")] = "500x375",
    seconds: Annotated[
        float | None,
        typer.Option(min=0.01, help=f"Of a turn ({TURN_SECONDS}), with --url of a load ({LOAD_SECONDS})."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="At most; fewer once they agree.")] = 20,
    csv: Annotated[Path | None, typer.Option(help="Also write the rows, with the environment.")] = None,
    json: JsonOption = False,
) -> None:
    """Measure bundles, in turns until the rounds agree; or a server, as its load grows."""
    if (url is None) == (not bundles):
        raise UsageError("what to measure?", hint="lct-deploy bench BUNDLE..., or lct-deploy bench --url URL")
    if csv is not None:
        check_writable(csv)
    if url is not None:
        _bench_server(
            url, parse_sizes(size), concurrency or CALLERS, rate, seconds or LOAD_SECONDS, csv, json=json
        )
        return
    with extra("bench"):
        from benchmarks.measure.messages import Subject
        from benchmarks.measure.rounds import Load, Plan
    options, pinned = parse_runtime_options(provider), parse_cores(cores)
    subjects = [
        Subject(
            bundle=path,
            runtime=name,
            precision=parse_precision(wanted),
            provider=options.provider,
            threads=threads or len(pinned) or options.threads,
            cores=pinned,
        )
        for path in _checked_bundles(bundles or [], vs)
        for name in _checked_runtimes(runtime)
        for wanted in (precision.split(",") if precision else [None])
    ]
    sizes = parse_counts(batch, "batch sizes")
    callers = parse_counts(concurrency or "1", "numbers of callers")
    loads = tuple(Load(batch=images, concurrency=at_once) for images, at_once in product(sizes, callers))
    _bench_bundles(subjects, Plan(loads=loads, seconds=seconds or TURN_SECONDS, most=rounds), csv, json=json)


def _checked_bundles(bundles: Sequence[Path], vs: Path | None) -> list[Path]:
    """Each once, first what the others are compared with; raises BundleError for what is none."""
    measured = list(dict.fromkeys(bundles if vs is None else [vs, *bundles]))
    for path in measured:
        read_manifest(path)
    return measured


def _checked_runtimes(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        check_known(name)
    return names


def _bench_bundles(subjects: "Sequence[Subject]", plan: "Plan", csv: Path | None, *, json: bool) -> None:
    from benchmarks.environment import environment
    from benchmarks.measure.run import run
    from benchmarks.measure.table import table
    from benchmarks.rows import write_rows

    rows = run(subjects, plan, base=subjects[0])
    if csv is not None:
        write_rows(csv, [row.columns() for row in rows])
    if json:
        print(dumps({"environment": environment(), "rows": [asdict(row) for row in rows]}))
    else:
        print_wide(table(rows))
        for reason in dict.fromkeys(row.error for row in rows if row.error):
            print(f"failed: {reason}")
    if unstable := sum(not row.stable and not row.error for row in rows):
        announce(f"warning: {unstable} rows, marked !, vary by more than 5 %: the machine is not quiet")
    if failed := sum(bool(row.error) for row in rows):
        raise LctDeployError(f"{failed} of {len(rows)} rows failed; they say why")


def _bench_server(
    url: str,
    sizes: tuple[tuple[int, int], ...],
    callers: str,
    rates: str | None,
    seconds: float,
    csv: Path | None,
    *,
    json: bool,
) -> None:
    with extra("bench"):
        from benchmarks.environment import environment
        from benchmarks.measure.http import LoadPlan, knees, load_server
        from benchmarks.measure.table import load_table
        from benchmarks.rows import write_rows
    plan = LoadPlan(
        url=url,
        sizes=sizes,
        callers=parse_counts(callers, "numbers of callers"),
        rates=parse_rates(rates),
        seconds=seconds,
    )
    rows = load_server(plan)
    best = knees(rows)
    if csv is not None:
        write_rows(csv, [row.columns() for row in rows])
    if json:
        described = {"rows": [asdict(row) for row in rows], "knees": [asdict(row) for row in best]}
        print(dumps({"environment": environment(), **described}))
    else:
        print_wide(load_table(rows, best))
