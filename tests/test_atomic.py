"""Files and directories that appear whole or not at all."""

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from lct_deploy.atomic import (
    _replace_directory,
    atomic_directory,
    atomic_file,
    check_new_directory,
    check_writable,
    sha256_file,
)
from lct_deploy.errors import UsageError


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def interrupt_file(path: Path) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt


def interrupt_directory(path: Path, *, overwrite: bool = False) -> None:
    with atomic_directory(path, overwrite=overwrite) as temporary:
        (temporary / "file").write_text("half")
        raise KeyboardInterrupt


def write_directory(path: Path, text: str, *, overwrite: bool = False) -> None:
    with atomic_directory(path, overwrite=overwrite) as temporary:
        (temporary / text).write_text(text)


# ---- files -----------------------------------------------------------------------------------------


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    with atomic_file(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert temporary.parent == tmp_path
    assert path.read_text() == "new"
    assert names(tmp_path) == ["out.json"]


def test_a_file_replaces_the_old_one_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("old")
    with atomic_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["out.json"]


def test_a_file_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupt_file(tmp_path / "out.json")
    assert names(tmp_path) == []


def test_a_file_that_fails_keeps_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        interrupt_file(path)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["out.json"]


def test_a_file_has_the_permissions_of_any_other(tmp_path: Path, umask: int) -> None:
    with atomic_file(tmp_path / "out") as temporary:
        assert mode(temporary) & 0o077 == 0  # nobody else reads it half written
    assert mode(tmp_path / "out") == 0o666 & ~umask


# ---- directories -----------------------------------------------------------------------------------


def test_a_directory_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    with atomic_directory(path) as temporary:
        (temporary / "file").write_text("new")
        assert not path.exists()
        assert temporary.parent == tmp_path
    assert names(path) == ["file"]
    assert names(tmp_path) == ["bundle"]


def test_a_directory_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupt_directory(tmp_path / "bundle")
    assert names(tmp_path) == []


def test_an_existing_directory_is_replaced_only_on_demand(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    write_directory(path, "old")
    with pytest.raises(UsageError, match="already exists") as caught:
        write_directory(path, "new")
    assert caught.value.hint == "give another -o, or --overwrite to replace it"
    assert names(path) == ["old"]
    write_directory(path, "new", overwrite=True)
    assert names(path) == ["new"]
    assert names(tmp_path) == ["bundle"]


def test_a_replacement_that_fails_keeps_the_old_directory(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    write_directory(path, "old")
    with pytest.raises(KeyboardInterrupt):
        interrupt_directory(path, overwrite=True)
    assert names(path) == ["old"]
    assert names(tmp_path) == ["bundle"]


def test_overwriting_what_does_not_exist_creates_it(tmp_path: Path) -> None:
    write_directory(tmp_path / "bundle", "new", overwrite=True)
    assert names(tmp_path / "bundle") == ["new"]


def test_overwriting_a_link_leaves_its_target_alone(tmp_path: Path) -> None:
    write_directory(tmp_path / "target", "old")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_directory(tmp_path / "link", "new", overwrite=True)
    assert names(tmp_path / "target") == ["old"]
    assert names(tmp_path / "link") == ["new"]
    assert names(tmp_path) == ["link", "target"]


def test_a_directory_that_someone_else_made_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "bundle"

    def race() -> None:
        with atomic_directory(path) as temporary:
            (temporary / "mine").touch()
            write_directory(path, "theirs")

    with pytest.raises(UsageError, match="already exists"):
        race()
    assert names(path) == ["theirs"]
    assert names(tmp_path) == ["bundle"]


def test_a_swap_that_fails_halfway_puts_the_old_directory_back(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    write_directory(path, "old")
    with pytest.raises(UsageError, match="bundle: cannot be replaced: No such file or directory"):
        _replace_directory(tmp_path / "vanished", path)
    assert names(path) == ["old"]
    assert names(tmp_path) == ["bundle"]


def test_a_directory_has_the_permissions_of_any_other(tmp_path: Path, umask: int) -> None:
    with atomic_directory(tmp_path / "bundle") as temporary:
        assert mode(temporary) & 0o077 == 0
    assert mode(tmp_path / "bundle") == 0o777 & ~umask


# ---- refusals before any work ----------------------------------------------------------------------


def test_a_file_needs_a_directory_to_lie_in(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for path in (tmp_path / "absent" / "out", file / "out"):
        with pytest.raises(UsageError, match="its directory does not exist") as caught:
            check_writable(path)
        assert caught.value.hint == f"mkdir -p {path.parent}"


def test_a_file_does_not_replace_a_directory(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a directory"), atomic_file(tmp_path):
        pytest.fail("the block ran")


def test_a_directory_needs_a_parent(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="its parent directory does not exist") as caught:
        check_new_directory(tmp_path / "absent" / "bundle", overwrite=False)
    assert caught.value.hint == f"mkdir -p {tmp_path / 'absent'}"


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_directory_does_not_replace_a_file(tmp_path: Path, overwrite: bool) -> None:
    file = tmp_path / "file"
    file.write_text("kept")
    with pytest.raises(UsageError, match="exists and is not a directory"):
        write_directory(file, "new", overwrite=overwrite)
    assert file.read_text() == "kept"


def test_a_parent_that_cannot_be_written_is_refused() -> None:
    """Not even by root: nobody creates files in /proc."""
    with pytest.raises(UsageError, match="/proc/out: cannot be written"):
        check_writable(Path("/proc/out"))
    with pytest.raises(UsageError, match="/proc/out: cannot be written"):
        check_new_directory(Path("/proc/out"), overwrite=False)


def test_checking_leaves_nothing_behind(tmp_path: Path) -> None:
    check_writable(tmp_path / "out")
    check_new_directory(tmp_path / "out", overwrite=True)
    assert names(tmp_path) == []


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_sha256_is_that_of_all_bytes(tmp_path: Path, size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    path = tmp_path / "data"
    path.write_bytes(data[:size])
    assert sha256_file(path) == hashlib.sha256(data[:size]).hexdigest()
