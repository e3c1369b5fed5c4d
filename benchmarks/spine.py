"""The times that a user waits for: import, start to ready, export with its proof.

`make bench` measures each several times in fresh processes and writes benchmarks/results/spine.csv.
"""

import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.networks import random_network
from benchmarks.rows import write_rows
from lct_deploy.progress import track
from lct_deploy.sample import DEMO_CHECKPOINT

RESULTS = Path(__file__).parent / "results" / "spine.csv"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement; peak memory is that of the process and its children, 0 where not measured."""

    what: str
    run: int
    seconds: float
    peak_mib: int = 0


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        checkpoint = work / "lct_resnet50.pt"
        torch.save(random_network("lct_resnet50").state_dict(), checkpoint)
        bundle = work / "demo"
        jobs: list[tuple[str, int, Callable[[], tuple[float, int]]]] = [
            ("import lct_deploy", 5, lambda: seconds_of([sys.executable, "-c", "import lct_deploy"])),
            (
                "import server.http_server",
                5,
                lambda: seconds_of([sys.executable, "-c", "import server.http_server"]),
            ),
            ("export demo", 2, lambda: _export(DEMO_CHECKPOINT, bundle)),
            ("serve demo: start to ready", 5, lambda: start_to_ready(bundle)),
            ("export lct_resnet50, 224 pixels", 2, lambda: _export(checkpoint, work / "r50")),
        ]
        rows = [
            Row(what=what, run=run, seconds=round(seconds, 3), peak_mib=peak)
            for what, count, job in track(jobs, "measuring", total=len(jobs))
            for run in range(count)
            for seconds, peak in [job()]
        ]
    write_rows(RESULTS, [asdict(row) for row in rows])
    for row in rows:
        print(f"{row.what:<36} {row.seconds:8.3f} s  {row.peak_mib or '':>6}")


def seconds_of(command: list[str]) -> tuple[float, int]:
    """Of a command from its start to its end; peak memory is not measured."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
    return time.perf_counter() - started, 0


def _export(checkpoint: Path, bundle: Path) -> tuple[float, int]:
    """Seconds and peak MiB of an export in a process of its own, which reports its own peak."""
    code = (
        "import sys; from lct_deploy.cli import app; import resource, json\n"
        "try: app()\n"
        "finally: print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))"
    )
    command = [sys.executable, "-c", code, "export", str(checkpoint), "-o", str(bundle), "--overwrite"]
    started = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    return time.perf_counter() - started, json.loads(done.stdout.splitlines()[-1]) // 1024


def start_to_ready(bundle: Path) -> tuple[float, int]:
    """Seconds from starting the process to its first 200 from /v2/health/ready."""
    command = [
        sys.executable,
        "-m",
        "lct_deploy",
        "serve",
        str(bundle),
        "--port",
        "0",
        "--log-level",
        "error",
    ]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:  # noqa: S603
        assert server.stdout is not None  # noqa: S101 - it is piped
        url = server.stdout.readline().strip()
        with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=30) as response:  # noqa: S310
            ready = response.status == 200
        seconds = time.perf_counter() - started
        server.terminate()
    if not ready:
        raise RuntimeError("the server is not ready")
    return seconds, 0


if __name__ == "__main__":
    main()
