"""The GPU benchmark where it can be run without a GPU: what it plans, what it records, what it refuses."""

import json
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import benchmarks.gpu.__main__ as program
from benchmarks.gpu import networks
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
from benchmarks.gpu.prepared import fold_batch_norm
from benchmarks.gpu.records import (
    KernelResult,
    Result,
    Times,
    append,
    beside_plain,
    completed,
    handed_over,
    planned,
    row,
    status_of,
)
from benchmarks.gpu.runners import Runner, compile_whole
from benchmarks.rows import read_rows, write_rows
from lct_deploy.architecture import model_config
from lct_deploy.errors import DeviceError, RuntimeUnavailableError
from lct_deploy.models.classifier import ImageClassifier
from lct_deploy.preprocessing import Preprocessing
from lct_deploy.runtime.base import Stages
from lct_deploy.runtime.flavours import gpu_capability
from tests.conftest import random_network

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


def timed(case: Case, milliseconds: float, *, device: float = 0.0, status: str = "ok") -> dict[str, Any]:
    times = Times.of([device]) if device else Times()
    return row(case, Result(status=status, max_rel_error=1e-6, host=Times.of([milliseconds]), device=times))


def test_networks_stand_beside_the_plain_one_of_their_turn() -> None:
    plain, fused, native = (c for c in groups("torch compile")[0].cases)
    (other, *_) = groups("torch compile")[1].cases
    rows = [
        timed(plain, 9.0, device=2.0),
        timed(fused, 9.0, device=2.1),
        timed(native, 9.0, device=3.0, status="wrong: cosine 0.5"),
        timed(other, 9.0, device=8.0),
    ]
    assert [r["times_plain"] for r in beside_plain(rows)] == [1.0, 1.05, None, 1.0]
    assert beside_plain(rows[1:2])[0]["times_plain"] is None
    assert beside_plain([timed(plain, 4.0), timed(fused, 5.0)])[1]["times_plain"] == 1.25
    assert "1.050 times the plain network" in program.summary(beside_plain(rows), [])[1]


def test_images_a_second_count_from_the_host_for_every_runtime() -> None:
    """What is on the device alone, only PyTorch tells."""
    case = groups("torch eager")[0].cases[0]
    assert timed(case, 16.0, device=8.0)["images_per_second"] == case.batch / 16e-3


def test_what_is_wrong_is_counted_and_not_shown_as_a_measurement() -> None:
    case, kernel = groups("tensorrt")[0].cases[0], kernel_cases()[0]
    nan = row(case, Result(status="wrong: NaN or infinite logits", host=Times.of([1.0])))
    result = KernelResult(status="wrong: relative error 1", copy_gigabytes_per_second=1.0)
    assert program.summary(beside_plain([nan]), [row(kernel, result)]) == [
        "1 cases: wrong: NaN or infinite logits",
        "1 cases: wrong: relative error 1",
    ]


@pytest.mark.parametrize("arch", ["resnet26", "lct_resnet20"])
def test_folding_the_batch_norms_leaves_none_and_the_same_answers(arch: str) -> None:
    network = random_network(model_config(arch, num_classes=10))
    x = torch.randn(2, 3, 32, 32)
    wanted = network(x)
    folded = fold_batch_norm(network)
    assert not [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
    torch.testing.assert_close(folded(x), wanted, rtol=1e-4, atol=1e-4)


def test_a_network_that_pytorch_would_run_uncompiled_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    network = random_network(model_config("lct_resnet20", num_classes=10))
    classifier = ImageClassifier(network, Preprocessing(resize=32, crop=32))
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch.compiler.reset()
    run = compile_whole(classifier)
    with torch._dynamo.config.patch(recompile_limit=1), torch.inference_mode():
        assert run(torch.zeros(1, 32, 32, 3, dtype=torch.uint8)).shape == (1, 10)
        with pytest.raises(Exception, match="fullgraph=True"):
            run(torch.zeros(2, 32, 32, 3, dtype=torch.uint8))


def runner(infer: Any) -> Runner:
    def profile(batch: np.ndarray) -> Stages:
        infer(batch)
        return Stages(compute=1.0)

    return Runner(infer=infer, profile=profile, launch=None, close=lambda: None)


def test_parity_is_of_whole_batches(tmp_path: Path) -> None:
    """The first call pays for the others: one of a smaller batch would pay for something else."""
    images = np.arange(5, dtype=np.uint8).repeat(12).reshape(5, 2, 2, 3)
    logits = np.eye(5, dtype=np.float32)
    np.savez(tmp_path / "resnet50.npz", images=images, logits=logits)
    seen: list[int] = []

    def infer(batch: np.ndarray) -> np.ndarray:
        seen.append(len(batch))
        return logits[batch[:, 0, 0, 0]]

    case = Case(runtime="tensorrt", attention="none", precision="fp32", batch=8)
    assert networks._parity(case, runner(infer), tmp_path).status == "ok"
    assert seen == [8]


def test_a_network_that_fails_costs_the_others_nothing() -> None:
    def fails(batch: np.ndarray) -> np.ndarray:
        raise DeviceError("inference: cudaErrorLaunchFailure")

    def works(batch: np.ndarray) -> np.ndarray:
        return batch

    first, second, _ = groups("tensorrt")[0].cases
    opened = [
        networks._Open(case=case, runner=runner(infer), parity=Result(status="ok"))
        for case, infer in ((first, fails), (second, works))
    ]
    networks._time(opened, np.zeros((1, 2, 2, 3), np.uint8), lambda: 0.0)
    bad, good = map(networks._result, opened)
    assert bad.status == "failed on the GPU: inference: cudaErrorLaunchFailure"
    assert (good.status, good.host.rounds) == ("ok", networks.LEAST_ROUNDS)
    assert (bad.stages, good.stages) == (Stages(), Stages(compute=1.0))
    assert row(second, good)["compute_ms"] == 1.0
    assert row(second, good)["enqueue_ms"] is None


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
