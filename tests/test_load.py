"""The load generator: against servers that stall, refuse, hang up and lie."""

import asyncio
import email
import io
import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from benchmarks.serving.arrivals import Pacer, poisson_arrivals
from benchmarks.serving.client import Job
from benchmarks.serving.figures import Latency, figures_of
from benchmarks.serving.load import Load, bodies, closed_loop, main, open_job, open_loop, throughput
from benchmarks.serving.photos import SIZE, photos
from benchmarks.serving.requests import JSON_LENGTH, Body, Target, form, raw, target, tensor
from benchmarks.serving.servers import ask, free_port
from benchmarks.serving.wrk import WARM_UP_SECONDS, wrk_version
from lct_deploy.errors import LctDeployError, UsageError
from tests.http_servers import BUSY, CHUNKED, HALF, LAST, OK, always, http_server, stalls

SMALL = (Body(content=b"hello", headers={"Content-Type": "text/plain"}),)
needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")


def small(url: str) -> Target:
    return target(url, SMALL)


def test_percentiles_are_values_that_occurred() -> None:
    latency = Latency.of(np.random.default_rng(0).permutation(np.arange(1.0, 101.0)))
    assert latency is not None
    assert (latency.min, latency.p50, latency.p90, latency.p95, latency.p99) == (1, 50, 90, 95, 99)
    assert (latency.max, latency.mean) == (100, 50.5)
    assert Latency.of(np.array([])) is None
    one = Latency.of(np.array([7.0]))
    assert one is not None
    assert set(vars(one).values()) == {7.0}


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300))
def test_as_many_values_as_a_percentile_says_do_not_exceed_it(values: list[float]) -> None:
    rounded = np.round(values, 3)
    latency = Latency.of(rounded)
    assert latency is not None
    for share, percentile in ((50, latency.p50), (90, latency.p90), (95, latency.p95), (99, latency.p99)):
        assert percentile in rounded
        assert 100 * np.sum(rounded <= percentile) >= share * len(rounded)
        assert 100 * np.sum(rounded < percentile) < share * len(rounded)


def test_figures_count_what_happened() -> None:
    due = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    outcome = np.array([200, 200, 503, -1, -2, 200.0])
    figures = figures_of(due, due + 0.01, due + 0.6, outcome, seconds=1.0)
    assert (figures.requests, figures.ok) == (6, 3)
    assert figures.errors == {"503": 1, "refused": 1, "lost": 1}
    assert figures.throughput == 2.0  # the third was answered after the end
    assert figures.latency is not None
    assert figures.latency.p50 == figures.latency.max == 600.0
    assert figures.late_ms == 10.0
    assert "1 503" in str(figures)
    assert figures.row()["errors"] == "503: 1; refused: 1; lost: 1"


def test_arrivals_are_poisson() -> None:
    moments = poisson_arrivals(200.0, 100.0, seed=1)
    gaps = np.diff(moments)
    assert len(moments) == pytest.approx(20_000, rel=0.05)
    assert moments[0] >= 0
    assert moments[-1] < 100
    assert (gaps >= 0).all()
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # as an exponential distribution has it
    assert np.array_equal(moments, poisson_arrivals(200.0, 100.0, seed=1))
    assert not np.array_equal(moments[:9], poisson_arrivals(200.0, 100.0, seed=2)[:9])


def test_the_pacer_is_never_early_and_forgets_nothing() -> None:
    arrivals = [0.0, 0.01, 0.01, 0.05, 0.2]
    called: list[tuple[int, float]] = []

    async def run() -> float:
        pacer = Pacer(arrivals, lambda index: called.append((index, time.perf_counter())))
        await pacer.run()
        return pacer.started

    started = asyncio.run(run())
    assert [index for index, _ in called] == [0, 1, 2, 3, 4]
    assert all(moment - started >= due for (_, moment), due in zip(called, arrivals, strict=True))


def test_a_stall_shows_in_the_latencies_of_an_open_loop() -> None:
    """Coordinated omission: whoever wanted to ask during the stall had to wait, sent or not."""
    stall, rate = 1.0, 100.0
    with http_server(stalls(at=50, seconds=stall)) as url:
        figures = open_loop(small(url), rate=rate, seconds=3.0)
    assert figures.ok == figures.requests > 200
    assert figures.latency is not None
    assert figures.latency.max >= 1e3 * stall * 0.9
    # A third of all arrivals fall into the stall: they wait half of it on average.
    assert figures.latency.p90 >= 500
    assert figures.latency.mean >= 100


def test_one_caller_of_a_closed_loop_sees_the_same_stall_once() -> None:
    with http_server(stalls(at=50, seconds=1.0)) as url:
        figures = closed_loop(small(url), connections=1, seconds=3.0)
    assert figures.latency is not None
    assert figures.latency.max >= 900
    assert figures.latency.p99 < 500


def test_latency_counts_from_when_a_request_was_due_not_sent() -> None:
    """One connection at most: the second request waits in the client for the first."""

    async def slow(number: int, own: int) -> bytes:
        await asyncio.sleep(0.2)
        return OK

    with http_server(slow) as url:
        where = small(url)
        job = Job(host=where.host, port=where.port, loop="open", seconds=1.0, connections=1, rate=20.0)
        with Load(where, job) as load:
            figures = load.figures()
    assert figures.ok == figures.requests > 8
    assert figures.latency is not None
    assert figures.latency.max > 1000
    assert figures.late_ms is not None
    assert figures.late_ms > 500


@pytest.mark.parametrize("content", [OK, CHUNKED, LAST])
def test_every_kind_of_answer_is_understood(content: bytes) -> None:
    with http_server(always(content)) as url:
        closed = closed_loop(small(url), connections=3, seconds=0.5)
        opened = open_loop(small(url), rate=50.0, seconds=0.5)
    assert closed.ok == closed.requests > 3
    assert opened.ok == opened.requests > 3


def test_statuses_are_counted() -> None:
    with http_server(always(BUSY)) as url:
        figures = open_loop(small(url), rate=50.0, seconds=0.5)
    assert figures.ok == 0
    assert figures.latency is None
    assert figures.errors == {"503": figures.requests}


@pytest.mark.parametrize(("content", "name"), [(None, "lost"), (HALF, "lost")])
def test_a_connection_closed_before_the_answer_is_a_lost_request(content: bytes | None, name: str) -> None:
    with http_server(always(content)) as url:
        figures = closed_loop(small(url), connections=2, seconds=0.3)
    assert figures.ok == 0
    assert figures.errors == {name: figures.requests}


def test_one_closed_after_use_without_an_answer_is_told_apart() -> None:
    async def second_is_lost(number: int, own: int) -> bytes | None:
        return OK if own == 0 else None

    with http_server(second_is_lost) as url:
        figures = closed_loop(small(url), connections=1, seconds=0.3)
    assert set(figures.errors) == {"lost on a connection used before"}
    assert figures.ok >= figures.requests // 2 > 0


def test_refused_connections_are_not_lost_requests() -> None:
    where = small(f"http://127.0.0.1:{free_port()}/")
    assert set(closed_loop(where, connections=2, seconds=0.2).errors) == {"refused"}
    opened = open_loop(where, rate=50.0, seconds=0.5)
    assert opened.errors == {"refused": opened.requests}
    assert ask(where) == (0, b"")


def test_what_is_never_answered_does_not_keep_the_client() -> None:
    async def never(number: int, own: int) -> bytes:
        await asyncio.sleep(60)
        return OK

    with http_server(never) as url:
        where = small(url)
        job = open_job(where, rate=20.0, seconds=0.5)
        with Load(where, replace(job, timeout=0.5)) as load:
            figures = load.figures()
    assert figures.errors == {"no answer in time": figures.requests}


def test_a_closed_loop_can_be_stopped() -> None:
    with http_server(always(OK)) as url:
        where = small(url)
        job = Job(host=where.host, port=where.port, loop="closed", seconds=60.0, connections=2)
        began = time.perf_counter()
        with Load(where, job) as load:
            time.sleep(0.3)
            load.stop()
            recorded = load.recorded()
    assert time.perf_counter() - began < 20
    assert len(recorded.rows) > 0
    assert (recorded.rows[:, 3] == 200).all()
    assert began < recorded.started < time.perf_counter()


@needs_wrk
def test_wrk_counts_answers_and_statuses() -> None:
    assert wrk_version()
    with http_server(always(OK)) as url:
        good = throughput(small(url), connections=4, seconds=1)
    assert good.ok == good.requests > 20
    assert good.throughput == pytest.approx(good.ok / good.seconds, rel=1e-3)
    assert good.errors == {}
    assert good.latency is None
    with http_server(always(BUSY)) as url:
        bad = throughput(small(url), connections=2, seconds=1)
    assert bad.ok == 0
    assert bad.errors == {"503": bad.requests}


@needs_wrk
def test_what_wrk_is_answered_while_it_warms_up_is_not_counted() -> None:
    asked = 0

    async def busy_at_first(number: int, own: int) -> bytes:
        nonlocal asked
        asked += 1
        return BUSY if asked <= 3 else OK

    with http_server(busy_at_first) as url:
        began = time.perf_counter()
        figures = throughput(small(url), connections=1, seconds=1)
        elapsed = time.perf_counter() - began
    assert figures.errors == {}
    assert 0 < figures.ok < asked - 3
    assert figures.seconds < elapsed - WARM_UP_SECONDS


@needs_wrk
def test_wrk_sends_every_body_in_turn() -> None:
    from benchmarks.serving import wrk

    seen: set[int] = set()

    async def answer(number: int, own: int) -> bytes:
        seen.add(number)
        return OK

    with http_server(answer) as url:
        where = target(url, [Body(content=bytes(n), headers={}) for n in (1, 100_000, 10)])
        assert wrk.run_wrk(where, connections=1, seconds=1).ok > 3
        refused = Target(host="127.0.0.1", port=free_port(), requests=where.requests)
    with pytest.raises(LctDeployError, match="wrk failed: unable to connect"):
        throughput(refused, connections=1, seconds=1)


def test_photos_are_the_same_every_time_and_of_the_size_of_photographs() -> None:
    first, second, *_ = photos()
    assert first != second
    photos.cache_clear()
    assert photos()[0] == first
    with Image.open(io.BytesIO(first)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", SIZE)
    assert 50_000 < len(first) < 80_000


def test_requests_are_whole() -> None:
    (request,) = target("http://127.0.0.1:81/v1/classify?top_k=3", [raw(b"abc")]).requests
    head, body = request.split(b"\r\n\r\n")
    assert head.split(b"\r\n")[0] == b"POST /v1/classify?top_k=3 HTTP/1.1"
    assert b"Host: 127.0.0.1:81" in head
    assert b"Content-Length: 3" in head
    assert body == b"abc"


def test_forms_are_forms() -> None:
    body = form(b"\xff\xd8\r\n--", "file")
    message = email.message_from_bytes(
        f"Content-Type: {body.headers['Content-Type']}\r\n\r\n".encode() + body.content
    )
    (part,) = list(message.walk())[1:]
    assert part.get_param("name", header="content-disposition") == "file"
    assert part.get_payload(decode=True) == b"\xff\xd8\r\n--"


def test_tensors_are_binary_ones_of_the_v2_protocol() -> None:
    images = np.arange(24, dtype=np.uint8).reshape(1, 2, 4, 3)
    body = tensor(images)
    length = int(body.headers[JSON_LENGTH])
    (described,) = json.loads(body.content[:length])["inputs"]
    assert described["shape"] == [1, 2, 4, 3]
    assert described["datatype"] == "UINT8"
    blob = body.content[length:]
    assert described["parameters"]["binary_data_size"] == len(blob)
    assert np.array_equal(np.frombuffer(blob, np.uint8).reshape(1, 2, 4, 3), images)


@pytest.mark.parametrize("url", ["https://127.0.0.1/", "127.0.0.1:80", "http://", "http://h:99999/", "x"])
def test_bad_urls_are_said(url: str) -> None:
    with pytest.raises(UsageError):
        target(url, SMALL)


def test_bad_bodies_are_said(tmp_path: Path) -> None:
    (tmp_path / "a.gif").write_bytes(b"x")
    for images, shape in (([tmp_path / "a.gif"], None), ([tmp_path / "a.png"], None), (None, "1,x")):
        with pytest.raises(UsageError):
            bodies(images, shape)


@pytest.mark.parametrize(
    ("rate", "connections", "wrk"),
    [(None, None, False), (1.0, 1, False), (-1.0, None, False), (1.0, None, True)],
)
def test_contradictory_loads_are_said(rate: float | None, connections: int | None, wrk: bool) -> None:
    with pytest.raises(UsageError):
        main("http://127.0.0.1:1/", rate=rate, connections=connections, wrk=wrk)


def test_the_program() -> None:
    command = [sys.executable, "-m", "benchmarks.serving.load"]
    with http_server(always(OK)) as url:
        arguments = [url, "--rate", "50", "--seconds", "0.5", "--shape", "1,2,2,3", "--json"]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["errors"] == {}
    done = subprocess.run([*command, "ftp://x", "--rate", "1"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: 'ftp://x' is not a URL")
