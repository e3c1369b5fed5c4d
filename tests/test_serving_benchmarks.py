"""The benchmarks of the server: peers, what supervises them, and the sums that turn rows into verdicts."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from benchmarks.serving import batching, clients, compare, overhead, soak, stops
from benchmarks.serving.client import Recorded
from benchmarks.serving.contenders import OURS, Contender, contenders, shapes
from benchmarks.serving.figures import Figures, Latency
from benchmarks.serving.in_process import Arrangement, arrangements, images_per_second, one_at_a_time
from benchmarks.serving.noop import SIZE, noop_bundle
from benchmarks.serving.peers.__main__ import choose
from benchmarks.serving.peers.catalogue import PEERS
from benchmarks.serving.peers.running import (
    Running,
    Shape,
    check_answers,
    expected_answers,
    running_peer,
)
from benchmarks.serving.photos import photos
from benchmarks.serving.ranking import NOTHING, Case, Row, best_shapes, slowest, summary
from benchmarks.serving.requests import raw, target
from benchmarks.serving.servers import Server, ServerFailedError, ask, free_port
from lct_deploy.bundle import Bundle, open_bundle
from lct_deploy.errors import UsageError
from lct_deploy.golden import check_golden
from lct_deploy.runtime import RuntimeOptions, open_bundled
from tests.http_servers import OK, always, http_server

GOLDEN_IMAGES = Path(__file__).parent / "golden" / "images"
FASTAPI = PEERS[0]
HERE = Path(sys.executable).parent  # its packages are the server's own
LATENCY = Latency(min=1, mean=2, p50=2, p90=3, p95=3, p99=4, max=5)


@pytest.fixture(scope="module")
def bundle(demo_bundle: Path) -> Bundle:
    return open_bundle(demo_bundle)


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    """A photograph, and files of other modes and shapes."""
    names = ("baseline.jpg", "cmyk.jpg", "grey.jpg", "palette_alpha.png", "rgb_33x257.png", "rgb_500x333.png")
    return [photos()[0], *((GOLDEN_IMAGES / name).read_bytes() for name in names)]


@pytest.fixture(scope="module")
def peer(bundle: Bundle, images: list[bytes]) -> Generator[Running]:
    with running_peer(FASTAPI, bundle, Shape(replicas=1, threads=1), images, HERE) as running:
        yield running


def test_a_peer_gives_our_answers(peer: Running, bundle: Bundle, images: list[bytes]) -> None:
    expected = expected_answers(bundle, images)
    check_answers(peer.where, expected)
    assert peer.start_seconds > 0
    wrong = [expected[0], [replace_index(expected[1][0]), *expected[1][1:]]]
    with pytest.raises(ServerFailedError, match="answers request 1 with"):
        check_answers(peer.where, wrong)


def replace_index(prediction: "compare.Prediction") -> "compare.Prediction":
    return prediction.model_copy(update={"index": prediction.index + 1})


def test_a_peer_that_answers_with_an_error_is_said(bundle: Bundle, images: list[bytes]) -> None:
    with http_server(always(b"HTTP/1.1 500 Oh No\r\nContent-Length: 2\r\n\r\nhm")) as url:
        where = target(url, [raw(image) for image in images])
        with pytest.raises(ServerFailedError, match="with status 500: b'hm'"):
            check_answers(where, expected_answers(bundle, images[:1]))


def test_what_a_server_consists_of_can_be_looked_at(peer: Running) -> None:
    sample = soak.look(peer.server, 1.0)
    assert sample.processes == 1
    assert sample.rss_mib > 20
    assert sample.files > 3
    peer.server.check()


def test_a_peer_that_is_not_installed_is_said(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("benchmarks.venvs.ENVIRONMENTS", tmp_path)
    shape = Shape(replicas=1, threads=1)
    with pytest.raises(ServerFailedError, match="not installed"), running_peer(FASTAPI, bundle, shape, [b""]):
        pass
    monkeypatch.setattr("benchmarks.venvs.sys.executable", "false")
    assert FASTAPI.venv.install() == "false failed with 1"
    words = "fastapi could not be installed: false failed with 1"
    with pytest.raises(ServerFailedError, match=words), running_peer(FASTAPI, bundle, shape, [b""]):
        pass


def test_a_peer_that_fails_stays_in_the_table(bundle: Bundle) -> None:
    @contextmanager
    def start() -> Generator[Running]:
        with Server([sys.executable, "-c", "raise SystemExit('no such thing')"]) as server:
            server.wait_until(lambda: False)
            raise AssertionError
        yield

    contender = Contender(name="broken", version="broken 1", shape="1x1", start=start)
    plan = compare.Plan(connections=(1,), seconds=1, load=0.7, expected=[])
    (row,) = compare.measure(contender, plan, 0, 0.0)
    assert row.status == "ended before it answered (exit code 1): no such thing"
    assert row.columns()["server"] == "broken"
    assert best_shapes([row]) == {}
    assert any("broken 1x1: ended before" in line for line in summary([row], OURS))


def test_every_requirement_of_a_peer_is_pinned() -> None:
    for peer in PEERS:
        lines = peer.venv.requirements.read_text().split()
        assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9.]+", line) for line in lines)
        assert peer.version.startswith(f"{peer.package} ")
        pins = set(lines)
        assert {
            "onnxruntime==1.31.1",
            "pillow==13.0.0",
            "numpy==2.4.6",
        } <= pins  # as ours, in constraints.txt
    constraints = (Path(__file__).parent.parent / "constraints.txt").read_text().split()
    assert {"onnxruntime==1.31.1", "pillow==13.0.0", "numpy==2.4.6"} <= set(constraints)


def test_peers_are_chosen_by_name() -> None:
    assert choose(None) == list(PEERS)
    assert [peer.name for peer in choose(["ray", "fastapi"])] == ["ray", "fastapi"]
    with pytest.raises(UsageError, match="no peer nope"):
        choose(["nope"])


def test_all_that_a_server_leaves_behind_is_killed() -> None:
    """Daemons in sessions of their own, a main process that ignores SIGTERM's meaning."""
    script = "(setsid sleep 600 &); (setsid sh -c 'sleep 600; true' &); echo ready; exec sleep 600"
    with Server(["sh", "-c", script]) as server:
        assert server.url() == "ready"
        time.sleep(0.5)
        processes = server.processes()
        assert len(processes) >= 3
    gone, alive = psutil.wait_procs(processes, timeout=5)
    assert len(gone) == len(processes)
    assert not alive


def test_a_server_that_prints_much_is_not_stopped_by_it(tmp_path: Path) -> None:
    code = f"print('ready'); print('x' * 1_000_000, flush=True); open({str(tmp_path / 'done')!r}, 'w')"
    with Server([sys.executable, "-c", code]) as server:
        assert server.url() == "ready"
        assert server.wait(20) == 0
    assert (tmp_path / "done").exists()


def test_a_server_dies_with_whoever_started_it(tmp_path: Path) -> None:
    code = f"""
import os
from pathlib import Path
from benchmarks.serving.servers import Server
server = Server(["sh", "-c", "(setsid sleep 600 &); echo ready; exec sleep 600"])
server.url()
import time; time.sleep(0.5)
Path({str(tmp_path / "pids")!r}).write_text(" ".join(str(p.pid) for p in server.processes()))
os._exit(1)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 20
    while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_server_that_cannot_start_says_its_last_words() -> None:
    words = r"did not start \(exit code 3\): first \| last"
    failing = Server(["sh", "-c", "echo first >&2; echo last >&2; exit 3"])
    with failing, pytest.raises(ServerFailedError, match=words):
        failing.url()
    where = target(f"http://127.0.0.1:{free_port()}/", [raw(b"")])
    silent = Server(["sleep", "600"])
    with silent, pytest.raises(ServerFailedError, match="did not answer within 0 s"):
        silent.wait_until(lambda: ask(where)[0] == 200, seconds=0.3)


def test_ours_and_the_peers_in_every_shape(bundle: Bundle) -> None:
    with contenders(bundle, choose(["fastapi"]), ["--decode-threads 1"]) as found:
        names = [(contender.name, contender.shape) for contender in found]
    assert names == [
        (OURS, "default"),
        (OURS, "--decode-threads 1"),
        *(("fastapi", str(shape)) for shape in shapes()),
    ]
    cores = len(os.sched_getaffinity(0))
    assert all(shape.replicas * shape.threads == cores for shape in shapes())


def row(server: str, shape: str, number: int, done: float, loop: str = "closed") -> Row:
    case = Case(server=server, version="1", shape=shape, round=number, loop=loop)
    return Row(case=case, figures=replace(NOTHING, throughput=done, latency=LATENCY))


def test_the_best_shape_of_each_server_is_compared() -> None:
    rows = [
        row(OURS, "default", 0, 100),
        row("x", "1x2", 0, 40),
        row("x", "1x2", 0, 60),
        row("x", "2x1", 0, 50),
        row("y", "1x2", 0, 0),
    ]
    assert best_shapes(rows) == {OURS: "default", "x": "1x2"}
    assert slowest(rows) == 60
    rows += [row(OURS, "default", n, 100 + n) for n in (1, 2)] + [row("x", "1x2", n, 50) for n in (1, 2)]
    rows += [row("x", "1x2", 1, 30), row("x", "1x2", 1, 0, "open own")]
    (_, ours, theirs) = summary(rows, OURS)
    assert ours.split()[:2] == [OURS, "101.5"]
    assert theirs.split()[:5] == ["x", "50.0", "2.030", "[2.025,", "2.035]"]
    assert "2.0 / 4.0" in theirs


@pytest.mark.parametrize("text", ["", "1,x", "0"])
def test_bad_numbers_of_callers_are_said(text: str, demo_bundle: Path) -> None:
    with pytest.raises(UsageError):
        compare._numbers(text)


def test_the_noop_bundle_is_a_bundle(tmp_path: Path) -> None:
    made = noop_bundle(tmp_path / "noop")
    with closing(open_bundled(made, "onnxruntime", RuntimeOptions(threads=1))) as runtime:
        assert check_golden(made, runtime).max_abs_error < 1e-4
        assert runtime.infer(np.full((2, SIZE, SIZE, 3), 7, np.uint8)).tolist() == [[7, 7, 7], [7, 7, 7]]


@pytest.mark.parametrize("decoders", [0, 2])
def test_decoding_and_inference_in_one_process(bundle: Bundle, decoders: int) -> None:
    arrangement = Arrangement(decoders=decoders, runners=2, threads=1, batch=2)
    assert images_per_second(bundle, arrangement, 0.5) > 1
    assert "2 runners of 1 threads" in str(arrangement)


def test_one_image_at_a_time(bundle: Bundle) -> None:
    milliseconds = one_at_a_time(bundle, 1, 0.3)
    assert len(milliseconds) > 1
    assert 0 < min(milliseconds) < 1000


def test_too_short_a_measurement_is_said(bundle: Bundle) -> None:
    arrangement = Arrangement(decoders=0, runners=1, threads=1, batch=64)
    with pytest.raises(UsageError, match="too few"):
        images_per_second(bundle, arrangement, 0.01)


def test_arrangements_are_all_different() -> None:
    for cores in (1, 2, 4):
        found = list(arrangements(cores, (1, 8)))
        assert len(set(found)) == len(found) >= 4
        assert all(1 <= arrangement.threads <= cores for arrangement in found)


def test_batches_stand_beside_those_of_one(bundle: Bundle) -> None:
    rows = list(batching.measure(bundle, 3, seconds=0.01))
    assert [row.batch for row in rows] == list(batching.SIZES)
    one = rows[0].images_per_second
    for row in rows:
        assert (row.round, row.graph, row.pixels) == (3, "bundled", 28)
        assert row.times_one == pytest.approx(row.images_per_second / one, rel=1e-3)
    lines = list(batching.summary([*rows, replace(rows[1], times_one=2.5, images_per_second=9.0)]))
    assert len(lines) == len(batching.SIZES)
    assert re.search(r"batch +1 .* 1\.000 \[1\.000, 1\.000\]", lines[0])


def test_overhead_is_reported_as_ratios_of_pairs() -> None:
    rows = [
        overhead.Row(bundle="b", what="throughput", round=n, value=v, beside=100, unit="images/s", detail="d")
        for n, v in enumerate((90, 95, 100))
    ]
    rows.append(overhead.Row(bundle="b", what="start", round=0, value=1.5, beside=None, unit="s"))
    first, second = overhead.summary(rows)
    assert first == (
        "b: throughput 95.000 images/s, beside 100.000: ratio 0.950 [0.925, 0.975], difference -5.000 (d)"
    )
    assert second == "b: start 1.500 s"


def test_unknown_parts_of_the_overhead_are_said(demo_bundle: Path) -> None:
    with pytest.raises(UsageError, match="unknown parts nope"):
        overhead.main([demo_bundle], parts="one,nope")


def samples(memory: list[float], files: list[int]) -> list[soak.Sample]:
    return [
        soak.Sample(seconds=n, processes=2, rss_mib=m, files=f, connections=3)
        for n, (m, f) in enumerate(zip(memory, files, strict=True))
    ]


def test_a_server_that_grows_fails_its_soak() -> None:
    steady, good = samples([100, 101, 99] * 3, [10, 11, 10] * 3), replace(NOTHING, ok=5, latency=LATENCY)
    assert soak.verdict(steady, good) == []
    leaks = soak.verdict(samples([100, 102, 104, 106, 108, 110], [10] * 6), good)
    assert leaks == ["memory grew by 7.9%"]
    assert soak.verdict(samples([100] * 6, [10, 10, 11, 12, 13, 14]), good) == ["4 more files are open"]
    failed: Figures = replace(good, errors={"503": 2, "429": 9, "lost": 1})
    assert soak.verdict(steady, failed) == ["2 requests: 503", "1 requests: lost"]
    assert "say nothing" in soak.verdict(steady[:3], good)[0]


def test_a_server_is_stopped_under_load(demo_bundle: Path) -> None:
    found = stops.stop(demo_bundle, (), 0, 0.5)
    assert (found.what, found.code) == ("SIGTERM", 0)
    assert found.requests == found.ok + found.lost + found.unanswered > 0
    assert found.refused > 0  # the load goes on until nobody listens any more


def test_requests_count_to_the_reload_before_them() -> None:
    due = np.array([0.1, 0.6, 1.2, 1.4, 2.5])
    outcomes = np.array([200, 200, -2, 503, 200.0])
    rows = np.stack([due, due, due, outcomes], axis=1)
    answers = [(10.5, 10.8, 200), (11.3, 11.4, 200)]
    first, second = stops._reloaded(answers, Recorded(rows=rows, started=10.0))
    assert (first.requests, first.ok, first.lost) == (3, 2, 1)
    assert (second.requests, second.ok, second.other) == (2, 1, "503: 1")
    assert stops.verdict([first, second]) == ["1 requests were lost", "answers with 503: 1"]
    assert stops.verdict([replace(first, lost=0, code=404)]) == ["reload ended with 404"]
    assert "2 of reload: 5 requests, 1 lost" in stops.summary([first, second])[0]


def test_a_formatter_to_compare_with_that_is_not_installed_is_said() -> None:
    """On stderr, which the measurement itself turns away."""
    without = "import sys, runpy; sys.modules['pythonjsonlogger'] = None; "
    module = "runpy.run_module('benchmarks.serving.observing', run_name='__main__')"
    command = [sys.executable, "-c", without + module]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install python-json-logger" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_clients_cost_is_measured_in_their_own_process() -> None:
    photos()  # made before anything is timed
    with http_server(always(OK)) as url:
        found = clients._measure(clients.CLIENTS["httpx"], url, 1.0)
    assert found["requests"] > 0
    assert found["cpu_microseconds"] > 0
