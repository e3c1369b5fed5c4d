"""`lct-deploy bench`."""

from dataclasses import asdict
from itertools import product
from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from lct_deploy.atomic import check_writable
from lct_deploy.bundle import read_manifest
from lct_deploy.commands.options import (
    JsonOption,
    ProviderOption,
    parse_cores,
    parse_counts,
    parse_precision,
    parse_runtime_options,
)
from lct_deploy.commands.shared import announce, extra, print_wide
from lct_deploy.errors import LctDeployError
from lct_deploy.runtime.select import check_known


def bench_command(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles; several are measured in turns.")],
    runtime: Annotated[
        str, typer.Option(help="One or more of onnxruntime, tensorrt and tensorrt-rtx, with commas.")
    ] = "onnxruntime",
    provider: ProviderOption = None,
    precision: Annotated[
        str | None, typer.Option(help="One or more, with commas; default: what each was exported for.")
    ] = None,
    batch: Annotated[str, typer.Option(help="Images at once, as 1,8,32.")] = "1",
    concurrency: Annotated[str, typer.Option(help="Callers at once, as 1,2,4.")] = "1",
    threads: Annotated[int | None, typer.Option(min=1, help="Of one inference; default: the cores.")] = None,
    cores: Annotated[str | None, typer.Option(help="To run on, as 0,1; default: the system chooses.")] = None,
    vs: Annotated[
        Path | None, typer.Option(help="The bundle that ratios are against; default: the first.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.01, help="Of a turn.")] = 0.5,
    rounds: Annotated[int, typer.Option(min=1, help="At most; fewer once they agree.")] = 20,
    csv: Annotated[Path | None, typer.Option(help="Also write the rows, with the environment.")] = None,
    json: JsonOption = False,
) -> None:
    """Measure latency and throughput of bundles, in turns until the rounds agree."""
    with extra("bench"):
        from benchmarks.environment import environment
        from benchmarks.measure.messages import Subject
        from benchmarks.measure.rounds import Load, Plan
        from benchmarks.measure.run import run
        from benchmarks.measure.table import table
        from benchmarks.rows import write_rows
    options, pinned = parse_runtime_options(provider), parse_cores(cores)
    measured = list(dict.fromkeys(bundles if vs is None else [vs, *bundles]))
    runtimes = [name.strip() for name in runtime.split(",")]
    for path in measured:
        read_manifest(path)
    for name in runtimes:
        check_known(name)
    subjects = [
        Subject(
            bundle=path,
            runtime=name,
            precision=parse_precision(wanted),
            provider=options.provider,
            threads=threads or len(pinned) or options.threads,
            cores=pinned,
        )
        for path in measured
        for name in runtimes
        for wanted in (precision.split(",") if precision else [None])
    ]
    loads = tuple(
        Load(batch=images, concurrency=callers)
        for images, callers in product(
            parse_counts(batch, "batch sizes"), parse_counts(concurrency, "numbers of callers")
        )
    )
    if csv is not None:
        check_writable(csv)
    rows = run(subjects, Plan(loads=loads, seconds=seconds, most=rounds), base=subjects[0])
    if csv is not None:
        write_rows(csv, [row.columns() for row in rows])
    _warn(sum(not row.stable and not row.error for row in rows))
    if json:
        print(dumps({"environment": environment(), "rows": [asdict(row) for row in rows]}))
    else:
        print_wide(table(rows))
        for reason in dict.fromkeys(row.error for row in rows if row.error):
            print(f"failed: {reason}")
    if failed := sum(bool(row.error) for row in rows):
        raise LctDeployError(f"{failed} of {len(rows)} rows failed; they say why")


def _warn(unstable: int) -> None:
    if unstable:
        announce(
            f"warning: {unstable} rows, marked !, vary by more than 5 %: the machine is not quiet enough"
        )
