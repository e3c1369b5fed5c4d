"""One section in a process of its own: `python -m benchmarks.gpu.worker SECTION WORK SECONDS ROWS`."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.gpu.plan import KERNEL, PREPARE
from benchmarks.gpu.records import append


def main(section: str, work: Path, seconds: float, rows: Path) -> None:
    until = time.perf_counter() + seconds

    def deadline() -> float:
        return until - time.perf_counter()

    _run(section, work, deadline, rows)


def _run(section: str, work: Path, deadline: Callable[[], float], rows: Path) -> None:
    """Each section loads its own packages only."""
    if section == PREPARE:
        from benchmarks.gpu.prepared import prepare

        prepare(work)
    elif section == KERNEL:
        from benchmarks.gpu import kernel

        for found in kernel.measure(deadline):
            append(rows, found)
    else:
        from benchmarks.gpu import networks

        for found in networks.measure(section, work, deadline):
            append(rows, found)


if __name__ == "__main__":
    name, directory, limit, target = sys.argv[1:]
    main(name, Path(directory), float(limit), Path(target))
