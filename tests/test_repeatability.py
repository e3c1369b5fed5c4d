"""How far to believe the figures: what the harness adds to them, and by how much two runs differ."""

import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks.gpu.plan import groups, kernel_cases
from benchmarks.gpu.records import KernelResult, Result, Times, row
from benchmarks.harness import Row, added_us, row_of, worst_share
from benchmarks.measure.messages import Subject, Taken, Turn
from benchmarks.measure.processes import Worker
from benchmarks.repeatability import main
from benchmarks.report.repeatability import SECTION
from benchmarks.report.sources import Results, read_results
from benchmarks.roofline import Row as Peak
from benchmarks.rows import RESULTS, write_rows
from benchmarks.serving.noop import noop_bundle
from lct_deploy.errors import UsageError

ROOT = Path(__file__).parent.parent


def test_what_is_recorded_is_the_known_time(tmp_path: Path) -> None:
    """The least of many: a machine that is not quiet adds to the others."""
    subject = Subject(kind="known time", bundle=noop_bundle(tmp_path / "noop").path, known_ms=0.5, threads=1)
    with Worker(subject) as worker:
        assert worker.opened().runtime == "known time"
        taken = worker.take(Turn(batch=1, seconds=0.2))
    assert 0.5 <= min(taken.milliseconds) < 0.5 * 1.05
    assert taken.stages is None
    assert sum(taken.milliseconds) <= 1e3 * taken.seconds


def test_all_that_is_not_the_known_time_is_the_harness_own() -> None:
    found = row_of(0.5, 3, Taken(milliseconds=(0.502, 0.502, 0.502), seconds=1.509e-3, rss_mib=1))
    assert asdict(found) == {
        "known_ms": 0.5,
        "round": 3,
        "inferences": 3,
        "within_us": pytest.approx(2.0),
        "between_us": pytest.approx(1.0),
        "share": pytest.approx(0.006),
    }


def test_the_worst_median_share_of_what_counts() -> None:
    def rows(known: float, *within: float) -> list[Row]:
        return [
            row_of(known, 0, Taken(milliseconds=(known + x,), seconds=(known + x) / 1e3, rss_mib=1))
            for x in within
        ]

    found = [*rows(0.0, 0.9), *rows(0.5, 0.002, 0.004, 0.3), *rows(2.0, 0.01)]
    assert added_us(found, 0.5) == pytest.approx(4)
    assert worst_share(found) == pytest.approx(0.008)


PEAKS = [
    Peak(what="fp32", detail=detail, threads=2, rounds=5, best=best, unit="Gop/s")
    for detail, best in (("a", 100.0), ("b", 200.0), ("c", 300.0))
]


def write(path: Path, rows: list[Peak], also: dict[str, str] | None = None) -> Path:
    write_rows(path, [asdict(row) for row in rows], also)
    return path


def test_two_runs_of_a_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write(tmp_path / "first.csv", PEAKS)
    again = [replace(PEAKS[0], best=102.0), replace(PEAKS[1], best=160.0), replace(PEAKS[2], detail="d")]
    main(first, write(tmp_path / "second.csv", again, {"commit": "another"}))
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        " -20.00%  fp32, b",
        "  +2.00%  fp32, a",
        "best of 2 cases differs by 12.92% at the median, by 22.48% at the 90th percentile, "
        "by 25.00% at most",
    ]
    assert "commit: " in said.err
    assert "2 cases are in one of the runs alone" in said.err


def test_rounds_of_a_case_are_taken_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(name: str, values: list[float]) -> Path:
        rows = [{"figure": "line", "round": i, "microseconds": value} for i, value in enumerate(values)]
        write_rows(tmp_path / name, rows)
        return tmp_path / name

    main(run("first.csv", [1.0, 2.0, 9.0]), run("second.csv", [2.2, 2.2, 0.1]))
    assert capsys.readouterr().out.startswith(" +10.00%  line\n")


def test_runs_that_cannot_be_compared(tmp_path: Path) -> None:
    first = write(tmp_path / "first.csv", PEAKS)
    with pytest.raises(UsageError, match=r"of two machines: cpu .* and Other"):
        main(first, write(tmp_path / "second.csv", PEAKS, {"cpu": "Other"}))
    other = tmp_path / "other.csv"
    write_rows(other, [{"figure": "line", "round": 0, "microseconds": 1.0}])
    with pytest.raises(UsageError, match="not rows of two runs of one benchmark"):
        main(first, other)
    with pytest.raises(UsageError, match="no case in common"):
        main(first, write(tmp_path / "third.csv", [replace(PEAKS[0], detail="z")]))
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not a file of rows"):
        main(first, tmp_path / "binary.csv")


def test_both_figures_of_a_case_are_kept_for_the_report(tmp_path: Path) -> None:
    first, second, output = (tmp_path / f"{name}.csv" for name in ("first", "second", "repeatability"))
    case = dict.fromkeys(("runtime", "precision", "graph", "batch", "concurrency"), "one")
    for path, factor in ((first, 1.0), (second, 1.5)):
        rows = [{"model": str(n), **case, "p50_ms": factor * n, "ratio_median": 0.5 * n} for n in (1, 2)]
        write_rows(path, rows)
    main(first, second, output=output)
    main(first, second, output=output)  # in the place of those that are there
    (source,) = read_results(tmp_path, ["first", "second", "repeatability"]).of("repeatability")
    text = SECTION.show(source, Results(sources=(source,))).text
    times, ratios = text.splitlines()[2:]
    assert times.startswith("| first | `p50_ms` | 2 | 0 | 50.0% | 50.0% | 50.0% |")
    assert ratios.startswith("| first | `ratio_median` | 2 | 2 | 0.0% | 0.0% | 0.0% |")


@pytest.mark.parametrize("kind", ["attention", "roofline", "serving-overhead", "serving-batching", "spine"])
def test_what_programs_write_can_be_compared(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = next(iter(sorted(RESULTS.glob(f"{kind}*.csv"))))
    main(path, path)
    assert "differs by 0.00% at the median" in capsys.readouterr().out


def test_rows_of_a_gpu_can_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = Times.of([2.0])
    kernel = row(kernel_cases()[0], KernelResult(status="ok", times=times))
    network = row(groups("tensorrt")[0].cases[0], Result(status="ok", host=times))
    for name, one in {"kernel": kernel, "network": network}.items():
        path = tmp_path / f"{name}.csv"
        write_rows(path, [one])
        main(path, path)
        assert "_ms of 1 cases differs by 0.00%" in capsys.readouterr().out


def test_the_program_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("")
    command = [
        sys.executable,
        "-m",
        "benchmarks.repeatability",
        tmp_path / "empty.csv",
        tmp_path / "empty.csv",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "empty.csv: no rows" in done.stderr
    assert "Traceback" not in done.stderr
