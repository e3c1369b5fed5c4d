"""How many cores this process may keep busy."""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_GROUPS, _MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def available_cores() -> int:
    """Cores that this process may run on, or fewer where its control group has time for fewer.

    `os.cpu_count` tells neither. A container with time for one and a half (`docker run --cpus 1.5`) keeps one
    busy: two would be stopped for a part of each period, in the middle of an inference.
    """
    allowed = len(os.sched_getaffinity(0))
    return max(1, math.floor(min(allowed, cpu_quota())))


def cpu_quota(groups: Path = _GROUPS, mount: Path = _MOUNT) -> float:
    """Seconds of all cores together that control groups allow in a second; infinite without a limit.

    Linux's cgroup-v2 (`cpu.max`) and cgroup-v1 (`cpu.cfs_quota_us`); the least of a group and those above it.
    """
    try:
        lines = groups.read_text().splitlines()
    except OSError:  # a system without control groups
        return math.inf
    limits = [math.inf]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            limits += [_limit(*_words(group / "cpu.max")) for group in _upwards(mount, path)]
        elif "cpu" in controllers.split(","):
            limits += [
                _limit(*_words(group / "cpu.cfs_quota_us"), *_words(group / "cpu.cfs_period_us"))
                for group in _upwards(mount / "cpu", path)
            ]
    return min(limits)


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """A group and those above it; in a container those that it does not see are not there."""
    group = mount / path.lstrip("/")
    yield group
    while group != mount:
        group = group.parent
        yield group


def _words(file: Path) -> list[str]:
    with suppress(OSError):
        return file.read_text().split()
    return []


def _limit(quota: str = "max", period: str = "100000") -> float:
    """Microseconds of each period, by default the kernel's; -1 and `max` are no limit."""
    return math.inf if quota in ("max", "-1") else int(quota) / int(period)
