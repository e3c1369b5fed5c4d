"""Results as raw rows: one CSV a benchmark, the environment in every row."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.environment import environment
from lct_deploy.atomic import atomic_file

RESULTS = Path(__file__).parent / "results"


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], also: Mapping[str, str] | None = None) -> None:
    """Write rows of equal keys; after their own columns those of the environment, and what it is `also`."""
    shared = {**environment(), **(also or {})}
    path.parent.mkdir(exist_ok=True)
    with atomic_file(path) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=[*rows[0], *shared], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **shared} for row in rows)


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row of the same keys to those that are there, which keep the environments they have."""
    rows = [*(read_rows(path) if path.exists() else []), {**row, **environment()}]
    path.parent.mkdir(exist_ok=True)
    with atomic_file(path) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[-1]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: Path) -> list[dict[str, str]]:
    """What `write_rows` wrote, every value as text."""
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))
