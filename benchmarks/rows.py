"""Results as raw rows: one CSV a benchmark, the environment in every row."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from benchmarks.environment import environment
from lct_deploy.atomic import atomic_file

RESULTS = Path(__file__).parent / "results"

R = TypeVar("R")  # a dataclass whose fields are columns


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], also: Mapping[str, str] | None = None) -> None:
    """Write rows of equal keys; after their own columns those of the environment, and what it is `also`."""
    shared = {**environment(), **(also or {})}
    _write(path, [{**row, **shared} for row in rows])


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row of the same keys to those that are there, which keep the environments they have."""
    _write(path, [*(read_rows(path) if path.exists() else []), {**row, **environment()}])


def replace_rows(path: Path, rows: Sequence[Mapping[str, Any]], by: Sequence[str]) -> None:
    """Put rows in the place of those that have the same values in the columns `by`; others stay."""
    fresh = [{**row, **environment()} for row in rows]
    again = {tuple(str(row[name]) for name in by) for row in fresh}
    before = read_rows(path) if path.exists() else []
    _write(path, [*(row for row in before if tuple(row[name] for name in by) not in again), *fresh])


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    with atomic_file(path) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[-1]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: Path) -> list[dict[str, str]]:
    """What `write_rows` wrote, every value as text."""
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def parse_rows(kind: type[R], rows: Iterable[Mapping[str, str]]) -> list[R]:
    """Rows as the dataclass that they were written from, whose fields are all of one column each.

    Raises pydantic.ValidationError for what does not have its columns.
    """
    adapter = TypeAdapter(kind)
    return [adapter.validate_python(_values(kind, row)) for row in rows]


def _values(kind: type[Any], row: Mapping[str, str]) -> dict[str, str | None]:
    """By field; an empty cell is None where the field is no text."""
    return {
        field.name: row[field.name] or ("" if field.type is str else None)
        for field in fields(kind)
        if field.name in row
    }
