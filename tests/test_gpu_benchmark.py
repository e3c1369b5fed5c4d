"""The GPU benchmark where it can be run without a GPU: what it plans, what it records, what it refuses."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import benchmarks.gpu.__main__ as program
from benchmarks.gpu.plan import (
    KERNEL,
    PRECISIONS,
    PREPARE,
    SECTIONS,
    TOTAL_SECONDS,
    Case,
    Section,
    allowance,
    groups,
    kernel_cases,
)
from benchmarks.gpu.records import (
    KernelResult,
    Result,
    Times,
    append,
    completed,
    handed_over,
    planned,
    row,
    status_of,
)
from benchmarks.rows import read_rows, write_rows
from lct_deploy.errors import DeviceError, RuntimeUnavailableError
from lct_deploy.runtime.flavours import gpu_capability

ROOT = Path(__file__).parent.parent
RUNTIMES = tuple(PRECISIONS)


def test_all_that_is_promised_is_planned() -> None:
    assert {section.name for section in SECTIONS} == {PREPARE, KERNEL, *RUNTIMES}
    batches = {case.batch for runtime in RUNTIMES for group in groups(runtime) for case in group.cases}
    assert {1, 32, 256} <= batches
    assert {c.precision for g in groups("tensorrt") for c in g.cases} == {
        "fp32", "tf32", "fp16", "bf16", "int8", "fp8",
    }  # fmt: skip
    assert {c.attention for g in groups("torch compile") for c in g.cases} == {"none", "native", "fused"}
    assert {(c.dtype, c.layout) for c in kernel_cases()} >= {
        ("fp32", "nchw"),
        ("fp16", "nhwc"),
        ("bf16", "nhwc"),
    }


@pytest.mark.parametrize("section", [KERNEL, *RUNTIMES])
def test_no_case_is_planned_twice(section: str) -> None:
    cases = planned(section)
    assert len(set(cases)) == len(cases) > 0


def test_the_sections_fit_into_the_time_and_pass_on_what_they_leave() -> None:
    assert sum(section.seconds for section in SECTIONS) <= TOTAL_SECONDS <= 480
    sections = [Section(name=str(i), seconds=s) for i, s in enumerate((10, 20, 30))]
    assert allowance(sections, 0, 0, total=100) == 50
    assert allowance(sections, 1, 5, total=100) == 65
    assert allowance(sections, 2, 90, total=100) == 10
    spent = 0.0
    for index in range(len(sections)):
        spent += allowance(sections, index, spent, total=100)  # each takes all that it may
    assert spent == 100


def test_rows_that_a_section_did_not_hand_over_say_why(tmp_path: Path) -> None:
    target = tmp_path / "rows"
    case = planned("onnxruntime cuda")[3]
    assert isinstance(case, Case)
    times = Times.of([3.0, 1.0, 2.0, 5.0, 4.0])
    append(target, [row(case, Result(status="ok", max_rel_error=1e-6, min_cosine=1.0, host=times))])
    with target.open("a") as stream:
        stream.write('{"runtime": "onnx')  # it was stopped while it wrote
    rows = completed("onnxruntime cuda", handed_over(target), "no time left")
    assert len(rows) == len(planned("onnxruntime cuda"))
    assert rows[3]["host_median_ms"] == 3.0
    assert rows[3]["images_per_second"] == pytest.approx(case.batch / 3e-3, abs=0.1)
    assert {r["status"] for i, r in enumerate(rows) if i != 3} == {"no time left"}
    assert len({tuple(r) for r in rows}) == 1  # equal columns
    write_rows(tmp_path / "rows.csv", rows, also={"gpu": "NVIDIA Test"})
    assert {r["gpu"] for r in read_rows(tmp_path / "rows.csv")} == {"NVIDIA Test"}


def test_a_kernels_row_has_its_share_of_the_copy() -> None:
    case = kernel_cases()[0]
    result = KernelResult(status="ok", gigabytes_per_second=900.0, copy_gigabytes_per_second=1000.0)
    assert row(case, result)["share_of_copy"] == 0.9
    assert row(case, KernelResult(status="no time left"))["share_of_copy"] is None
    assert set(asdict(case)) <= set(row(case, result))


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ModuleNotFoundError("No module named 'triton'", name="triton"), "not installed: triton"),
        (
            RuntimeUnavailableError("tensorrt is not installed", hint="pip"),
            "not available: tensorrt is not installed",
        ),
        (
            DeviceError("inference: cudaErrorIllegalAddress"),
            "failed on the GPU: inference: cudaErrorIllegalAddress",
        ),
        (RuntimeError("CUDA out of memory.\nTried"), "failed on the GPU: CUDA out of memory."),
        (ValueError(), "ValueError: ValueError"),
    ],
)
def test_errors_become_statuses(error: Exception, status: str) -> None:
    assert status_of(error) == status


def test_a_section_that_dies_costs_only_its_own_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Processes as the real ones are, with other work: one crashes, one hangs, one hands over a row."""
    good = row(planned("tensorrt")[0], Result(status="ok"))
    code = f"""
import os, sys, time
section, _, _, target = sys.argv[1:]
if section == {KERNEL!r}: os.abort()
if section == "torch eager": time.sleep(60)
if section == "tensorrt": open(target, "w").write({json.dumps(json.dumps(good))} + "\\n")
if section == "tensorrt-rtx": sys.exit("no such GPU")
"""
    (tmp_path / "stand_in.py").write_text(code)
    monkeypatch.setattr(program, "WORKER", [str(tmp_path / "stand_in.py")])
    monkeypatch.setattr(program, "GRACE", 0.0)
    sections = tuple(Section(name=s.name, seconds=0.5) for s in SECTIONS)
    monkeypatch.setattr(program, "SECTIONS", sections)
    rows = program.run_all(tmp_path, total=sum(s.seconds for s in sections) + 1)
    assert {r["status"] for r in rows["kernel"]} == {"crashed with -6: it says nothing"}
    by_runtime = {name: [r for r in rows["networks"] if r["runtime"] == name] for name in RUNTIMES}
    assert all("stopped after" in r["status"] for r in by_runtime["torch eager"])
    assert [r["status"] for r in by_runtime["tensorrt"]].count("ok") == 1
    assert {r["status"] for r in by_runtime["tensorrt-rtx"]} == {"crashed with 1: no such GPU"}
    assert any("crashed with -6" in line for line in program.summary(rows["networks"], rows["kernel"]))


@pytest.mark.skipif(gpu_capability() is not None, reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    command: list[Any] = [sys.executable, "-m", "benchmarks.gpu", "--output", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: no NVIDIA GPU can be used here\nnvidia-smi shows the driver and its GPUs\n"
    assert not list(tmp_path.iterdir())
