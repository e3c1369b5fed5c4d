"""Files and directories that are whole or absent: written beside their place, then renamed."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from lct_deploy.errors import UsageError

_CHUNK = 1 << 20


@contextmanager
def atomic_file(path: Path) -> Generator[Path]:
    """A temporary path in `path`'s directory; renamed to `path` on success, removed on failure.

    Raises UsageError where the directory does not exist or cannot be written.
    """
    check_writable(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp's 0600 would hide the file from a service user
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path, *, overwrite: bool = False) -> Generator[Path]:
    """A temporary directory beside `path`; becomes `path` on success, is removed on failure.

    With `overwrite` an existing directory is moved aside first and deleted last. Raises UsageError
    where `path` exists otherwise, or where it cannot be created or replaced.
    """
    check_new_directory(path, overwrite=overwrite)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        check_new_directory(path, overwrite=overwrite)  # someone may have created it meanwhile
        _replace_directory(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_writable(path: Path) -> None:
    """Raise UsageError unless a file could be created at `path`: asked before long work starts."""
    parent = path.parent
    if not parent.is_dir():
        raise UsageError(f"{path}: its directory does not exist", hint=f"mkdir -p {parent}")
    if path.is_dir():
        raise UsageError(f"{path}: is a directory")
    _probe(parent, path)


def check_new_directory(path: Path, *, overwrite: bool) -> None:
    """Raise UsageError unless a directory could be created at `path` (or replaced, if asked)."""
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path}: exists and is not a directory")
    if path.exists() and not overwrite:
        raise UsageError(f"{path}: already exists", hint="give another -o, or --overwrite to replace it")
    parent = path.parent
    if not parent.is_dir():
        raise UsageError(f"{path}: its parent directory does not exist", hint=f"mkdir -p {parent}")
    _probe(parent, path)


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _probe(parent: Path, path: Path) -> None:
    """Create and remove a file: mode bits alone say nothing of read-only mounts or full disks."""
    try:
        with tempfile.NamedTemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error


def _replace_directory(temporary: Path, path: Path) -> None:
    if not path.exists():
        temporary.rename(path)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
    old = aside / path.name
    try:
        path.rename(old)
        temporary.rename(path)
    except OSError as error:
        if old.exists():
            old.rename(path)
        aside.rmdir()
        raise UsageError(f"{path}: cannot be replaced: {error.strerror}") from error
    shutil.rmtree(aside, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
