"""The guard against regressions: what it calls a change, and what it refuses."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.compare import has_moved, verdict
from benchmarks.measure.results import Ratio, Row

ROOT = Path(__file__).parent.parent


def row(median: float, first: float, third: float) -> Row:
    ratio = Ratio(base="base", median=median, first_quartile=first, third_quartile=third)
    return Row(
        model="lct_resnet50-fp32",
        arch="lct_resnet50",
        kind="bundle",
        runtime="onnxruntime",
        precision="fp32",
        graph="compiled",
        threads=2,
        batch=8,
        concurrency=1,
        ratio=ratio,
    )


@pytest.mark.parametrize(
    ("median", "first", "third", "how"),
    [
        (1.05, 1.02, 1.08, "slower"),
        (0.90, 0.85, 0.99, "faster"),
        (1.05, 0.99, 1.10, "the same"),  # the rounds do not agree
        (1.005, 1.002, 1.008, "the same"),  # they agree, on nothing that matters
        (1.0, 1.0, 1.0, "the same"),
    ],
)
def test_a_change_is_what_is_large_enough_and_beyond_the_noise(
    median: float, first: float, third: float, how: str
) -> None:
    said = verdict(row(median, first, third))
    assert said.startswith("lct_resnet50-fp32, batch 8: ")
    assert said.endswith(f", {how}")
    assert has_moved(row(median, first, third)) is (how != "the same")


def test_a_failure_is_told_and_is_no_change() -> None:
    failed = replace(row(1, 1, 1), ratio=None, error="out of memory")
    assert verdict(failed) == "lct_resnet50-fp32, batch 8: out of memory"
    assert not has_moved(failed)


def test_what_is_no_commit_is_wrong_use() -> None:
    command = [sys.executable, "-m", "benchmarks.compare", "no-such-commit"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "'no-such-commit' is not a commit" in done.stderr
    assert "Traceback" not in done.stderr
