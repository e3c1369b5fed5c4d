"""Whether a server stays as it is: `python -m benchmarks.serving.soak BUNDLE --minutes 15 --load 0.8`.

Finds out what the server can do, sends it a share of that, and looks at its processes meanwhile: memory,
open files, connections. Writes benchmarks/results/serving-soak-MACHINE.csv and says whether anything grew:

    memory   the mean of the last third against that of the first: at most 3 % more
    files    beside connections, which come and go with the load: the median of the thirds, the same
    answers  no 5xx, and no request without an answer
"""

import shlex
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import psutil
import typer

from benchmarks.environment import machine_name
from benchmarks.rows import RESULTS, write_rows
from benchmarks.serving.command import run_command
from benchmarks.serving.contenders import running_ours
from benchmarks.serving.figures import Figures
from benchmarks.serving.load import Load, open_job, throughput
from benchmarks.serving.peers.running import Running
from benchmarks.serving.servers import Server
from benchmarks.serving.wrk import required_wrk
from lct_deploy.bundle import open_bundle
from lct_deploy.errors import LctDeployError
from lct_deploy.progress import progress_bar

CONNECTIONS = 16
CAPACITY_SECONDS = 10.0
MEMORY_LIMIT = 1.03
FILES_LIMIT = 1.0
MIN_SAMPLES = 6
HELD = "all held"
ALLOWED = ("429",)  # a server may say that it is too much; all else is a failure
_TICK = 0.2


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The processes of a server at one moment; `files` are open ones without connections."""

    seconds: float
    processes: int
    rss_mib: float
    files: int
    connections: int


def main(
    bundle: Path,
    minutes: Annotated[float, typer.Option(min=0.1)] = 15.0,
    load: Annotated[float, typer.Option(min=0.05, max=1.0, help="Of what the server can do.")] = 0.8,
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 5.0,
    serve: Annotated[str, typer.Option(help="More options of `lct-deploy serve`.")] = "",
    output: Annotated[
        Path | None, typer.Option(help="Default: benchmarks/results/serving-soak-MACHINE.csv.")
    ] = None,
) -> None:
    """Load a server for a long time and look whether it grows."""
    required_wrk()
    opened = open_bundle(bundle)
    with running_ours(opened.path, *shlex.split(serve)) as running:
        capacity = throughput(running.where, connections=CONNECTIONS, seconds=CAPACITY_SECONDS).throughput
        if not capacity:
            raise LctDeployError("the server answers nothing under load")
        rate = load * capacity
        samples, figures = soak(running, rate, 60 * minutes, every)
    failures = verdict(samples, figures)
    also = {
        "bundle": opened.manifest.arch,
        "rate": f"{rate:.2f}",
        "figures": str(figures),
        "verdict": "; ".join(failures) or HELD,
    }
    write_rows(
        output or RESULTS / f"serving-soak-{machine_name()}.csv", [asdict(s) for s in samples], also=also
    )
    print(f"{rate:.1f} of {capacity:.1f} requests/s for {minutes} minutes: {figures}")
    print(f"memory {growth(samples):+.2%}, files {more_files(samples):+.0f}")
    if failures:
        raise LctDeployError("; ".join(failures))


def soak(running: Running, rate: float, seconds: float, every: float) -> tuple[list[Sample], Figures]:
    """Samples of a server under load, and what the clients saw."""
    samples: list[Sample] = []
    with (
        Load(running.where, open_job(running.where, rate=rate, seconds=seconds)) as load,
        progress_bar() as bar,
    ):
        task = bar.add_task("soaking", total=round(seconds), status="")
        began = time.monotonic()
        while load.running:
            running.server.check()
            spent = time.monotonic() - began
            if spent >= len(samples) * every and spent < seconds:
                samples.append(look(running.server, spent))
                bar.update(task, status=f"{samples[-1].rss_mib:.0f} MiB")
            bar.update(task, completed=min(round(spent), round(seconds)))
            time.sleep(_TICK)
        figures = load.figures()
    return samples, figures


def look(server: Server, seconds: float) -> Sample:
    """One sample; a process that ends meanwhile does not count."""
    processes = rss = files = connections = 0
    for process in server.processes():
        try:
            established = [c for c in process.net_connections("tcp") if c.status == psutil.CONN_ESTABLISHED]
            own = process.memory_info().rss, process.num_fds()
        except psutil.NoSuchProcess:
            continue
        processes, rss = processes + 1, rss + own[0]
        files, connections = files + own[1] - len(established), connections + len(established)
    return Sample(
        seconds=round(seconds, 1),
        processes=processes,
        rss_mib=round(rss / 2**20, 2),
        files=files,
        connections=connections,
    )


def verdict(samples: Sequence[Sample], figures: Figures) -> list[str]:
    """What is wrong, in sentences; nothing where all held."""
    if len(samples) < MIN_SAMPLES:
        return [f"{len(samples)} samples say nothing; take --minutes longer or --every shorter"]
    failures: list[str] = []
    if (change := growth(samples)) > MEMORY_LIMIT - 1:
        failures.append(f"memory grew by {change:.1%}")
    if (more := more_files(samples)) > FILES_LIMIT:
        failures.append(f"{more:.0f} more files are open")
    failures += [f"{count} requests: {name}" for name, count in figures.errors.items() if name not in ALLOWED]
    return failures


def growth(samples: Sequence[Sample]) -> float:
    """Of memory, from the first third to the last, as a share."""
    first, last = _thirds(samples, "rss_mib", statistics.fmean)
    return last / first - 1


def more_files(samples: Sequence[Sample]) -> float:
    """That are open in the last third."""
    first, last = _thirds(samples, "files", statistics.median)
    return last - first


def _thirds(
    samples: Sequence[Sample], what: str, middle: Callable[[list[float]], float]
) -> tuple[float, float]:
    values = [float(getattr(sample, what)) for sample in samples]
    third = max(len(values) // 3, 1)
    return middle(values[:third]), middle(values[-third:])


if __name__ == "__main__":
    run_command(main)
