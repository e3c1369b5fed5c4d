"""The raw rows that there are, by what was measured and where."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.environment import UNKNOWN
from benchmarks.rows import read_rows
from lct_deploy.errors import LctDeployError

Rows = list[dict[str, str]]

# What `machine_name` gives begins with a vendor or an architecture.
_STEM = re.compile(r"(?P<what>.+?)(?:-(?P<machine>(?:amd|intel|x86_64|aarch64|arm64)-.+))?")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file of rows. `kind` is of which program; `variant` what else its name says, mostly nothing."""

    kind: str
    variant: str
    machine: str  # "" where the name has none
    rows: Rows

    @property
    def name(self) -> str:
        """Of its plots."""
        return "-".join(part for part in (self.kind, self.variant, self.machine) if part)

    @property
    def where(self) -> str:
        """For people: the machine, or the processor where the name of the file has none, and the variant."""
        machine = f"`{self.machine}`" if self.machine else self.told("cpu")
        return f"{machine}, {self.variant}" if self.variant and machine else machine or self.variant

    def told(self, column: str) -> str:
        """What the rows' environment says; "" where it does not, as rows from before it was recorded."""
        found = dict.fromkeys(row.get(column, "") for row in self.rows)
        return ", ".join(value for value in found if value not in ("", UNKNOWN, "absent"))

    def groups(self, *columns: str) -> dict[tuple[str, ...], Rows]:
        """Rows that agree in these columns, in the order in which they come."""
        found: dict[tuple[str, ...], Rows] = {}
        for row in self.rows:
            found.setdefault(tuple(row[column] for column in columns), []).append(row)
        return found


@dataclass(frozen=True, kw_only=True)
class Results:
    """All files of a directory."""

    sources: tuple[Source, ...]

    def of(self, kind: str) -> list[Source]:
        return [source for source in self.sources if source.kind == kind]

    def at(self, kind: str, machine: str) -> Source | None:
        """The one without a variant."""
        return next((s for s in self.of(kind) if s.machine == machine and not s.variant), None)

    @property
    def machines(self) -> dict[str, Source]:
        """Names, each with a file from there: the one whose rows tell most."""
        found: dict[str, Source] = {}
        for source in self.sources:
            known = found.get(source.machine)
            if source.machine and (known is None or len(source.rows[0]) > len(known.rows[0])):
                found[source.machine] = source
        return dict(sorted(found.items()))


def read_results(directory: Path, kinds: Iterable[str]) -> Results:
    """Raises LctDeployError for a file that none of `kinds` is, or that has no rows."""
    return Results(sources=tuple(_read(directory, sorted(kinds, key=len, reverse=True))))


def _read(directory: Path, kinds: list[str]) -> Iterator[Source]:
    for path in sorted(directory.glob("*.csv")):
        what, machine = _parts(path.stem)
        kind = next((kind for kind in kinds if what == kind or what.startswith(f"{kind}-")), None)
        rows = read_rows(path)
        if kind is None or not rows:
            why = "no section of the report is made from it" if kind is None else "it has no rows"
            raise LctDeployError(f"{path}: {why}", hint="benchmarks/report/sections.py lists the sections")
        yield Source(kind=kind, variant=what[len(kind) + 1 :], machine=machine, rows=rows)


def _parts(stem: str) -> tuple[str, str]:
    """What a file is of, and the machine: "" where its name has none."""
    found = _STEM.fullmatch(stem)
    return (found["what"], found["machine"] or "") if found else (stem, "")


def numbers(rows: Iterable[Mapping[str, str]], column: str) -> list[float]:
    """Of the rows that have one."""
    return [float(row[column]) for row in rows if row[column]]
