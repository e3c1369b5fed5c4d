"""The times that a user waits for: import, start to ready, export with its proof.

`make bench` measures each several times in fresh processes and writes benchmarks/results/spine.csv.
"""

import csv
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

from benchmarks.environment import environment
from lct_deploy.architecture import model_config
from lct_deploy.atomic import atomic_file
from lct_deploy.models import build_model
from lct_deploy.models.resnet import calibrate_batch_norm
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
        checkpoint = _random_lct_resnet50(work / "lct_resnet50.pt")
        bundle = work / "demo"
        jobs: list[tuple[str, int, Callable[[], tuple[float, int]]]] = [
            ("import lct_deploy", 5, lambda: _run([sys.executable, "-c", "import lct_deploy"])),
            ("import server.run", 5, lambda: _run([sys.executable, "-c", "import server.run"])),
            ("export demo", 2, lambda: _export(DEMO_CHECKPOINT, bundle)),
            ("serve demo: start to ready", 5, lambda: _start(bundle)),
            ("export lct_resnet50, 224 pixels", 2, lambda: _export(checkpoint, work / "r50")),
        ]
        rows = [
            Row(what=what, run=run, seconds=round(seconds, 3), peak_mib=peak)
            for what, count, job in track(jobs, "measuring", total=len(jobs))
            for run in range(count)
            for seconds, peak in [job()]
        ]
    _write(rows)
    for row in rows:
        print(f"{row.what:<36} {row.seconds:8.3f} s  {row.peak_mib or '':>6}")


def _random_lct_resnet50(path: Path) -> Path:
    """Weights that behave: calibrated BatchNorm, gates that vary."""
    torch.manual_seed(0)
    network = build_model(model_config("lct_resnet50"))
    for name, parameter in network.named_parameters():
        if name.endswith(("attn.w", "attn.b")):
            torch.nn.init.normal_(parameter)
    calibrate_batch_norm(network, [torch.randn(8, 3, 224, 224)])
    torch.save(network.state_dict(), path)
    return path


def _run(command: list[str]) -> tuple[float, int]:
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


def _start(bundle: Path) -> tuple[float, int]:
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


def _write(rows: list[Row]) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    shared = environment()
    with atomic_file(RESULTS) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=[*asdict(rows[0]), *shared])
        writer.writeheader()
        writer.writerows({**asdict(row), **shared} for row in rows)


if __name__ == "__main__":
    main()
