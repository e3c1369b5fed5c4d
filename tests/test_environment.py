"""What stands in every row of results, and where an inference's time and memory go."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from benchmarks import environment, stages
from benchmarks.environment import UNKNOWN
from benchmarks.stages import TIMES, GpuMemory, median_stages, stage_columns
from lct_deploy.runtime import cuda
from lct_deploy.runtime.base import Stages


def test_clocks_and_governor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "governor").write_text("performance\n")
    monkeypatch.setattr(environment, "_GOVERNOR", tmp_path / "governor")
    monkeypatch.setattr(psutil, "cpu_freq", lambda: SimpleNamespace(current=2100.4, max=3500.0))
    found = environment.environment()
    assert {name: found[name] for name in ("governor", "mhz", "mhz_max")} == {
        "governor": "performance",
        "mhz": "2100",
        "mhz_max": "3500",
    }


@pytest.mark.parametrize("told", [None, SimpleNamespace(current=0.0, max=0.0)])
def test_a_machine_that_does_not_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, told: object) -> None:
    monkeypatch.setattr(environment, "_GOVERNOR", tmp_path / "none")
    monkeypatch.setattr(psutil, "cpu_freq", lambda: told)
    found = environment.environment()
    assert {found[name] for name in ("governor", "mhz", "mhz_max")} == {UNKNOWN}


def test_a_gpu_is_in_every_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The program that is asked prints what it was asked for, in that order."""
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\necho "$2" | sed "s/--query-gpu=//; s/,/, /g"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(environment, "gpu_name", lambda: "NVIDIA Test")
    monkeypatch.setattr(environment, "gpu_capability", lambda: "sm90")
    found = environment.environment()
    assert found["gpu"] == "NVIDIA Test"
    assert found["sm_clock"] == "clocks.sm"
    assert found["gpu_memory_used"] == "memory.used"
    program.unlink()
    assert environment.environment()["sm_clock"] == UNKNOWN


def test_stages_are_medians_of_what_is_told() -> None:
    taken = iter([Stages(compute=float(n), enqueue=0.5 if n else None) for n in (9, 1, 0, 2, 3)])
    images = np.zeros((1, 8, 8, 3), np.uint8)
    assert median_stages(lambda _: next(taken), images) == Stages(compute=2.0, enqueue=0.5)
    assert next(taken, None) is None
    assert TIMES == 5
    assert list(stage_columns()) == ["host_to_device_ms", "enqueue_ms", "compute_ms", "device_to_host_ms"]


def test_gpu_memory_is_what_is_taken_while_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter(mib << 20 for mib in (1000, 900, 400, 450, 450, 380))
    monkeypatch.setattr(cuda, "free_memory", lambda: next(free))
    memory = GpuMemory()
    peaks: list[float] = []
    for _ in range(3):  # 100 taken; another took 500 meanwhile; 50 given back; 70 taken
        with memory.watched():
            pass
        peaks.append(memory.peak_mib)
    assert peaks == [100, 100, 120]


def test_without_a_gpu_there_is_none_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "gpu_capability", lambda: None)
    assert stages.gpu_memory() is None
