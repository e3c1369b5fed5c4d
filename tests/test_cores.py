"""What control groups leave of the cores, of both versions of the kernel's interface."""

import math
import os
from pathlib import Path

import pytest

from lct_deploy.cores import available_cores, cpu_quota


def write(files: dict[str, str], root: Path) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/", {"cpu.max": "250000 100000"}, 2.5),
        ("0::/", {"cpu.max": "max 100000"}, math.inf),
        ("0::/", {}, math.inf),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000"}, 0.5),
        ("0::/a/b", {"a/b/cpu.max": "100000 50000", "a/cpu.max": "300000 100000"}, 2),
        ("0::/not/seen/here", {"cpu.max": "100000 100000"}, 1),
        ("0::/../above", {"cpu.max": "100000 100000"}, 1),
        (
            "3:cpuset:/\n1:cpu,cpuacct:/docker/f00",
            {"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "100000"},
            1.5,
        ),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
        (
            "4:memory:/x:y\n1:cpu:/x:y\n0::/",
            {
                "cpu/cpu.cfs_quota_us": "-1",
                "cpu/cpu.cfs_period_us": "100000",
                "cpu/x:y/cpu.cfs_quota_us": "20000",
                "cpu/x:y/cpu.cfs_period_us": "10000",
            },
            2,
        ),
    ],
)
def test_the_quota_is_the_least_of_a_group_and_those_above(
    tmp_path: Path, groups: str, files: dict[str, str], expected: float
) -> None:
    write({"cgroup": groups}, tmp_path)
    write(files, tmp_path / "mount")
    assert cpu_quota(tmp_path / "cgroup", tmp_path / "mount") == expected


def test_a_system_without_control_groups_has_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "none", tmp_path) == math.inf


@pytest.mark.parametrize(("quota", "cores"), [(math.inf, None), (0.25, 1), (1.9, 1), (10_000, None)])
def test_cores_are_whole_ones_and_never_none(
    monkeypatch: pytest.MonkeyPatch, quota: float, cores: int | None
) -> None:
    monkeypatch.setattr("lct_deploy.cores.cpu_quota", lambda: quota)
    assert available_cores() == (cores or len(os.sched_getaffinity(0)))
