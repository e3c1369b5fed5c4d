"""`lct-deploy bench --url`: real loads on the real server, and where the knee is."""

import csv
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.measure.http import LoadRow, knees
from benchmarks.serving.figures import Figures, figures_of
from tests.conftest import Cli, QuickCli
from tests.serving import Server


@pytest.fixture(scope="module")
def server(demo_bundle: Path) -> Generator[Server]:
    with Server(demo_bundle) as server:
        yield server


@pytest.mark.parametrize("route", ["/v1/classify", "/v2/models/demo/infer"])
def test_a_server_under_closed_and_open_loops(cli: Cli, server: Server, tmp_path: Path, route: str) -> None:
    file = tmp_path / "rows.csv"
    options = ("--concurrency", "1,2", "--rate", "5", "--seconds", 1, "--size", "64x48,200x150")
    done = cli("bench", "--url", server.url + route, *options, "--csv", file, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    rows: list[dict[str, Any]] = document["rows"]
    assert [(row["width"], row["callers"], row["rate"]) for row in rows] == [
        (width, *load) for width in (64, 200) for load in ((1, None), (2, None), (None, 5.0))
    ]
    for row in rows:
        assert row["figures"]["ok"] == row["figures"]["requests"] > 0
        assert row["figures"]["latency"]["p50"] > 0
    assert rows[0]["bytes"] < rows[3]["bytes"]
    with file.open(newline="") as stream:
        written = list(csv.DictReader(stream))
    assert [float(row["throughput"]) for row in written] == [row["figures"]["throughput"] for row in rows]


def test_rates_are_shares_of_what_the_callers_reached(cli: Cli, server: Server) -> None:
    url = f"{server.url}/v1/classify"
    done = cli("bench", "--url", url, "--concurrency", "2", "--seconds", 0.5, "--size", "64x48")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()[1:]
    reached = float(lines[0].split()[3])
    rates = [float(line.split()[1]) for line in lines[1:]]
    assert rates == pytest.approx([share * reached for share in (0.3, 0.5, 0.7, 0.8, 0.9)], abs=0.1)


def test_a_server_that_refuses_everything_is_an_error(cli: Cli, server: Server) -> None:
    done = cli("bench", "--url", f"{server.url}/v1/nothing", "--concurrency", "1", "--seconds", 0.2)
    assert done.returncode == 1
    assert "no request was answered with 200" in done.stderr
    assert "404" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "what to measure?"),
        (("bundle", "--url", "http://127.0.0.1:1/"), "what to measure?"),
        (("--url", "ftp://host/"), "is not a URL such as"),
        (("--url", "http://127.0.0.1:1/", "--size", "500"), "is not a list of sizes"),
        (("--url", "http://127.0.0.1:1/", "--rate", "0"), "is not a list of requests a second"),
        (("--url", "http://127.0.0.1:1/", "--rate", "fast"), "is not a list of requests a second"),
        (("--url", "http://127.0.0.1:1/", "--concurrency", "-1"), "is not a list of numbers of callers"),
    ],
)
def test_wrong_use(quick_cli: QuickCli, arguments: tuple[str, ...], message: str) -> None:
    done = quick_cli("bench", *arguments)
    assert done.returncode == 2
    assert message in done.stderr


def answered(rate: float, seconds_each: float, *, share: float = 1.0) -> LoadRow:
    """An open loop in which each request took so long, and only a share was answered in its time."""
    due = np.arange(round(100 * rate)) / rate
    over = due + seconds_each
    over[round(share * len(due)) :] = 200
    figures = figures_of(due, due, over, np.full(len(due), 200.0), seconds=100)
    return row(rate, figures)


def row(rate: float | None, figures: Figures) -> LoadRow:
    return LoadRow(url="", width=1, height=1, bytes=1, loop="open", rate=rate, callers=None, figures=figures)


def test_the_knee_is_where_latency_begins_to_outgrow_throughput() -> None:
    rows = [answered(10, 0.01), answered(20, 0.011), answered(30, 0.012), answered(36, 0.05)]
    assert knees(rows) == [rows[2]]


def test_what_is_not_held_is_no_knee() -> None:
    held, not_held = answered(10, 0.01), answered(40, 0.01, share=0.5)
    assert held.holds
    assert not not_held.holds
    assert knees([held, not_held]) == [held]
    assert knees([not_held]) == []
