"""Files of labels: the names of a network's classes, one a line, in their order."""

from pathlib import Path

from lct_deploy.errors import DataError


def read_labels(file: Path, classes: int) -> tuple[str, ...]:
    """One label for each of `classes`; raises DataError for a file that has others, or cannot be read."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as UTF-8 text: {error}") from error
    while lines and not lines[-1].strip():
        lines.pop()
    empty = [number for number, line in enumerate(lines, start=1) if not line.strip()]
    if empty:
        raise DataError(f"{file}: line {empty[0]} is empty")
    if len(lines) != classes:
        raise DataError(
            f"{file}: {len(lines)} labels, the network has {classes} classes",
            hint="the file has one label a line, in the order of the classes",
        )
    return tuple(line.strip() for line in lines)
