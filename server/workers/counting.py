"""The directory in which the processes of a server count together, kept by Prometheus' client in files there.

A file has the name of who counts in it, not a process id: a worker that takes the place of another counts
on where that was ended, so that no counter goes back and no file is left over.
"""

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import values

from lct_deploy.errors import UsageError

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_IN_MEMORY = "/dev/shm"  # noqa: S108 - a directory is made there, that is ours alone
_EMPTY_FILE = bytes(1 << 16)


@contextmanager
def counted_together(name: str) -> Generator[Path]:
    """A new directory, removed in the end; this process counts in it as `name`.

    Raises UsageError where the environment already names one for several servers.
    """
    if VARIABLE in os.environ:
        raise UsageError(
            f"{VARIABLE} is set: workers count in a directory of their own",
            hint=f"unset {VARIABLE}, or serve with --workers 1",
        )
    before = values.ValueClass
    with tempfile.TemporaryDirectory(
        prefix="lct-metrics-", dir=_place(), ignore_cleanup_errors=True
    ) as directory:
        os.environ[VARIABLE] = directory
        count_as(name)
        try:
            yield Path(directory)
        finally:
            del os.environ[VARIABLE]
            values.ValueClass = before


def _place() -> str | None:
    """Memory, where nobody clears away what looks old; None for what Python takes otherwise."""
    return _IN_MEMORY if os.access(_IN_MEMORY, os.W_OK) else None


def worker_name(number: int) -> str:
    """By which a worker counts."""
    return f"worker{number}"


def count_as(name: str) -> None:
    """Metrics that this process makes from now on are its own, by this name."""
    values.ValueClass = values.MultiProcessValue(process_identifier=lambda: name)


def forget_gauges(directory: Path, name: str) -> None:
    """What a process had at its end it has no longer; what it has counted stays."""
    # Replaced and not removed: whoever reads the directory never finds a file that is being made.
    empty = directory / f"{name}.new"
    empty.write_bytes(_EMPTY_FILE)
    empty.replace(directory / f"gauge_livesum_{name}.db")
