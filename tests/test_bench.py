"""`lct-deploy bench`: what it measures, that it takes turns, and that what fails stays in the table."""

import csv
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.measure.messages import Subject, Taken, Turn
from benchmarks.measure.processes import SubjectFailedError, Worker
from benchmarks.measure.results import Ratio, result_row
from benchmarks.measure.rounds import STABLE_ROUNDS, Load, Measured, Plan, measure
from tests.conftest import Cli, QuickCli

SHORT = ("--seconds", 0.02, "--rounds", STABLE_ROUNDS)


@pytest.fixture(scope="module")
def two_bundles(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [demo_bundle, Path(shutil.copytree(demo_bundle, tmp_path_factory.mktemp("other") / "other"))]


def subject(bundle: Path) -> Subject:
    return Subject(bundle=bundle, runtime="onnxruntime", threads=1)


def test_one_document_with_a_row_for_each_bundle_and_load(cli: Cli, two_bundles: list[Path]) -> None:
    options = ("--batch", "1,3", "--concurrency", "1,2", "--threads", 1, *SHORT)
    done = cli("bench", *two_bundles, *options, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    rows: list[dict[str, Any]] = document["rows"]
    loads = [(row["batch"], row["concurrency"], row["model"]) for row in rows]
    names = [path.name for path in two_bundles]
    assert loads == [(b, c, name) for b in (1, 3) for c in (1, 2) for name in names]
    for row in rows:
        latency = row["latency"]
        ordered = [latency[name] for name in ("min", "p50", "p90", "p95", "p99", "max")]
        assert ordered == sorted(ordered)
        assert row["inferences"] >= 3 * row["concurrency"] * STABLE_ROUNDS
        assert 0 < row["golden_error"] < 1e-3
        assert row["rss_mib"] > 20
        assert row["stages"]["compute"] == pytest.approx(latency["p50"], rel=5)
        assert row["stages"]["host_to_device"] is row["gpu_mib"] is None  # there is no device
    assert [row["ratio"] is None for row in rows] == [True, False] * 4
    assert rows[1]["ratio"]["base"] == "demo, onnxruntime"
    assert document["environment"]["cores"] == str(len(os.sched_getaffinity(0)))


def test_the_table_and_the_file_say_the_same(cli: Cli, two_bundles: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    done = cli("bench", two_bundles[0], "--vs", two_bundles[1], *SHORT, "--csv", file)
    assert done.returncode == 0, done.stderr
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["model"] for row in rows] == ["other", "demo"]
    assert rows[1]["base"] == "other, onnxruntime"
    assert rows[0]["ratio_median"] == ""
    assert rows[0]["commit"]
    assert rows[0]["governor"]
    assert float(rows[0]["compute_ms"]) > 0
    assert rows[0]["device_to_host_ms"] == ""
    _, first, second = done.stdout.splitlines()
    assert first.split()[0] == "other"
    assert f"{float(rows[1]['ratio_median']):.3f} [" in second


def test_what_cannot_run_here_is_a_row_and_an_exit_code(cli: Cli, demo_bundle: Path) -> None:
    done = cli("bench", demo_bundle, "--runtime", "onnxruntime,tensorrt", *SHORT)
    assert done.returncode == 1
    good, bad = done.stdout.splitlines()[1:3]
    assert "failed" not in good
    assert bad.split()[1] == "tensorrt"
    assert "failed" in bad
    assert "1 of 2 rows failed" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_damaged_bundle_is_not_measured(cli: Cli, two_bundles: list[Path]) -> None:
    wrong = Path(shutil.copytree(two_bundles[0], two_bundles[1].parent / "wrong"))
    (wrong / "model.onnx").write_bytes(b"another")
    done = cli("bench", wrong, *SHORT)
    assert done.returncode == 1
    assert "nothing could be measured" in done.stderr
    assert "SHA-256 differs" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--batch", "0"), "'0' is not a list of batch sizes"),
        (("--concurrency", "two"), "'two' is not a list of numbers of callers"),
        (("--cores", "0-3"), "'0-3' is not a list of cores"),
        (("--cores", "4096"), "core 4096 is not one that this process may use"),
        (("--runtime", "openvino9"), "unknown runtime 'openvino9'"),
        (("--precision", "fp31"), "unknown precision 'fp31'"),
    ],
)
def test_wrong_use(quick_cli: QuickCli, demo_bundle: Path, arguments: tuple[str, str], message: str) -> None:
    done = quick_cli("bench", demo_bundle, *arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_bundle_that_is_none_is_said_before_anything_is_measured(
    quick_cli: QuickCli, tmp_path: Path
) -> None:
    done = quick_cli("bench", tmp_path / "none")
    assert done.returncode == 1
    assert "no such bundle" in done.stderr


def test_workers_are_halted_between_their_turns(two_bundles: list[Path]) -> None:
    with Worker(subject(two_bundles[0])) as one, Worker(subject(two_bundles[1])) as other:
        assert one.opened().arch == other.opened().arch == "lct_resnet20"
        plan = Plan(loads=(), seconds=0.01, most=STABLE_ROUNDS)
        first, second = measure([one, other], Load(batch=2, concurrency=1), plan, on_round=lambda: None)
        assert len(first.turns) == len(second.turns) <= STABLE_ROUNDS
        for worker in (one, other):
            os.waitid(os.P_PID, worker.pid, os.WSTOPPED)  # hangs where it is not halted


def test_a_worker_that_dies_leaves_a_failure_and_the_others_go_on(two_bundles: list[Path]) -> None:
    with Worker(subject(two_bundles[0])) as one, Worker(subject(two_bundles[1])) as other:
        about = [worker.opened() for worker in (one, other)]
        os.kill(one.pid, signal.SIGKILL)
        plan = Plan(loads=(), seconds=0.01, most=STABLE_ROUNDS)
        dead, alive = measure([one, other], Load(batch=1, concurrency=1), plan, on_round=lambda: None)
        assert isinstance(dead.failure, SubjectFailedError)
        rows = [result_row(opened, each, dead) for opened, each in zip(about, (dead, alive), strict=True)]
        assert "its process ended with -9" in rows[0].error
        assert rows[0].latency is None
        assert rows[1].latency is not None
        assert rows[1].ratio is None


def test_memory_is_that_of_the_worker_alone(demo_bundle: Path) -> None:
    """Not of the process that started it, which holds more here."""
    held = np.ones(400 << 20, np.uint8)
    with Worker(subject(demo_bundle)) as worker:
        worker.opened()
        taken = worker.take(Turn(batch=1, seconds=0))
    assert 20 < taken.rss_mib < held.nbytes >> 20


def measured(worker: Worker, milliseconds: list[list[float]]) -> Measured:
    one = Measured(worker=worker, load=Load(batch=2, concurrency=1))
    for times in milliseconds:
        one.turns.append(Taken(milliseconds=tuple(times), seconds=sum(times) / 1e3, rss_mib=1))
    return one


def test_figures(two_bundles: list[Path]) -> None:
    """Of made-up times: the last rounds count, ratios are of medians in the same round."""
    with Worker(subject(two_bundles[0])) as worker:
        opened = worker.opened()
        slow_start = measured(worker, [[50.0, 70.0], *[[10.0, 10.0, 30.0]] * STABLE_ROUNDS])
        assert slow_start.variation == 0
        assert slow_start.stable
        row = result_row(opened, slow_start, slow_start)
        assert row.latency is not None
        assert (row.latency.min, row.latency.p50, row.latency.max) == (10, 10, 30)
        assert row.images_per_second == pytest.approx(2 * 3 / 0.05)
        assert row.ratio is None  # it is the base itself
        uneven = measured(worker, [[10.0], [20.0], [10.0], [20.0], [10.0], [20.0], [10.0]])
        assert not uneven.stable
        assert uneven.variation == pytest.approx(np.std([1, 2]) / np.mean([1, 2]))
        ratio = Ratio.of(uneven, slow_start)
        assert (ratio.first_quartile, ratio.median, ratio.third_quartile) == (1, 1, 2)
        assert not measured(worker, [[10.0]]).stable
