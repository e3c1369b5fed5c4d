"""Engines that die, hang, fill up and are replaced, behind the real server."""

import asyncio
import io
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from server.engine.process import longest_running
from tests.serving import Server, assert_problem, classify, encoded, upload

WRITER = """
import mmap, sys, time
import numpy as np
clocks = np.frombuffer(mmap.mmap(int(sys.argv[1]), 64), np.float64)
print("writes", flush=True)
while True:
    clocks[0] = time.monotonic()
    clocks[0] = 0
"""


def test_a_lane_that_ends_while_its_clock_is_read_has_not_run_since_the_machine_started() -> None:
    memory = os.memfd_create("clocks")
    os.ftruncate(memory, 64)
    clocks = np.frombuffer(mmap.mmap(memory, 64), np.float64)
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(memory)], pass_fds=(memory,), stdout=subprocess.PIPE
    )
    assert writer.stdout is not None
    writer.stdout.readline()
    found = [longest_running(clocks) for _ in range(300_000)]
    writer.kill()
    writer.communicate()
    os.close(memory)
    assert any(found)
    assert max(found) < 10


@pytest.fixture
def server(slow_bundle: Path) -> Generator[Server]:
    with Server(slow_bundle, intra_op_threads=1, hang_seconds=3) as running:
        yield running


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def is_ready(url: str) -> bool:
    return httpx.get(f"{url}/v2/health/ready").status_code == 200


def jpeg(seed: int = 0, size: int = 224) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


@asynccontextmanager
async def client(server: Server) -> AsyncGenerator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as http:
        yield http


async def post(http: httpx.AsyncClient, body: bytes, **headers: str) -> httpx.Response:
    return await http.post("/v1/classify", content=body, headers={"Content-Type": "image/jpeg", **headers})


async def post_many(http: httpx.AsyncClient, images: int) -> httpx.Response:
    files = [("file", (f"{i}.jpg", jpeg(i), "image/jpeg")) for i in range(images)]
    return await http.post("/v1/classify", files=files)


async def kill_while_it_computes(server: Server, how: signal.Signals) -> list[httpx.Response]:
    """The answers of one request of 40 images, during which the engine was hit, and of 8 behind it."""
    async with client(server) as http:
        large = asyncio.create_task(post_many(http, 40))
        await asyncio.sleep(0.7)
        behind = [asyncio.create_task(post(http, jpeg(i))) for i in range(8)]
        await asyncio.sleep(0.3)
        assert not large.done()
        os.kill(server.engines()[0], how)
        return list(await asyncio.gather(large, *behind))


def test_a_killed_engine_loses_what_it_was_computing_and_nothing_else(server: Server) -> None:
    before = server.engines()
    lost, *others = asyncio.run(kill_while_it_computes(server, signal.SIGKILL))
    assert_problem(lost, 503, "died while it was computing")
    assert int(lost.headers["retry-after"]) >= 1
    assert [answer.status_code for answer in others] == [200] * 8
    assert server.engines() != before
    assert is_ready(server.url)


def test_a_hung_engine_is_replaced(server: Server) -> None:
    """SIGSTOP is as good a hang as any: it answers nothing, and no signal but SIGKILL ends it."""
    before = server.engines()
    lost, *others = asyncio.run(kill_while_it_computes(server, signal.SIGSTOP))
    assert_problem(lost, 503, "died while it was computing")
    assert [answer.status_code for answer in others] == [200] * 8
    assert server.engines() != before


def test_readiness_is_false_while_the_engine_is_gone_and_liveness_is_not(server: Server) -> None:
    os.kill(server.engines()[0], signal.SIGKILL)
    wait_for(lambda: not is_ready(server.url))
    assert httpx.get(f"{server.url}/v2/health/live").status_code == 200
    wait_for(lambda: is_ready(server.url))
    with httpx.Client(base_url=server.url, timeout=60) as http:
        assert classify(http, jpeg(), "image/jpeg").status_code == 200


def test_an_engine_that_cannot_be_restarted_is_said_and_comes_back(demo_bundle: Path, tmp_path: Path) -> None:
    import shutil

    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    with Server(bundle) as server, httpx.Client(base_url=server.url, timeout=60) as http:
        (bundle / "model.onnx").rename(bundle / "away.onnx")
        os.kill(server.engines()[0], signal.SIGKILL)
        wait_for(lambda: classify(http, encoded()).status_code == 503)
        answer = classify(http, encoded())
        assert_problem(answer, 503, "cannot be restarted")
        assert str(tmp_path) not in answer.text
        assert not is_ready(server.url)
        (bundle / "away.onnx").rename(bundle / "model.onnx")
        wait_for(lambda: is_ready(server.url))
        assert classify(http, encoded()).status_code == 200


def test_the_engine_ends_with_the_server_however_that_ends(demo_bundle: Path) -> None:
    server = Server(demo_bundle)
    (engine,) = server.engines()
    server.process.kill()
    server.process.communicate()
    wait_for(lambda: not Path(f"/proc/{engine}").exists())


def test_ctrl_c_in_a_terminal_reaches_the_server_alone(server: Server) -> None:
    """The engine has to answer what is in flight, so the terminal's signal must not reach it."""
    (engine,) = server.engines()
    assert os.getpgid(engine) != os.getpgid(server.process.pid)


# Overload


def test_a_full_queue_is_503_with_the_time_it_takes_to_drain(slow_bundle: Path) -> None:
    async def overload(server: Server) -> list[httpx.Response]:
        async with client(server) as http:
            await post(http, jpeg())  # the rate is known from now on
            return list(await asyncio.gather(*(post(http, jpeg(i)) for i in range(40))))

    with Server(slow_bundle, intra_op_threads=1, max_queue=8, max_images=8) as server:
        answers = asyncio.run(overload(server))
        refused = [answer for answer in answers if answer.status_code == 503]
        assert {answer.status_code for answer in answers} == {200, 503}
        assert len(answers) - len(refused) >= 8
        for answer in refused:
            assert_problem(answer, 503, "too busy")
            assert 1 <= int(answer.headers["retry-after"]) <= 60
        with httpx.Client(base_url=server.url, timeout=60) as http:
            assert classify(http, jpeg(), "image/jpeg").status_code == 200


def test_a_request_is_answered_at_its_deadline(server: Server) -> None:
    async def late() -> tuple[httpx.Response, float, httpx.Response]:
        async with client(server) as http:
            ahead = asyncio.create_task(post_many(http, 30))
            await asyncio.sleep(0.5)
            began = time.monotonic()
            refused = await post(http, jpeg(), **{"X-Request-Timeout-Ms": "200"})
            took = time.monotonic() - began
            return refused, took, await ahead

    refused, took, ahead = asyncio.run(late())
    assert_problem(refused, 504, "deadline")
    assert took < 1.5  # far less than what was ahead of it
    assert ahead.status_code == 200


@pytest.mark.parametrize("value", ["soon", "-1", "1.5", "²", "9" * 30])
def test_a_deadline_that_is_none(server: Server, value: str) -> None:
    headers = [(b"Content-Type", b"image/jpeg"), (b"X-Request-Timeout-Ms", value.encode())]
    answer = httpx.post(f"{server.url}/v1/classify", content=jpeg(), headers=headers)
    assert_problem(answer, 400, "whole number of milliseconds")


def test_clients_that_go_leave_the_queue(slow_bundle: Path) -> None:
    """Thirty clients that hang up: were their images computed, the last answer would take seconds."""

    async def go_away(server: Server) -> httpx.Response:
        async with client(server) as http:
            first = asyncio.create_task(post(http, jpeg()))
            await first
            leaving = [asyncio.create_task(post_many(http, 8)) for _ in range(4)]
            await asyncio.sleep(0.5)
            for task in leaving:
                task.cancel()
            await asyncio.gather(*leaving, return_exceptions=True)
            # The queue holds 32 images: it has room again only if theirs have left it.
            await asyncio.sleep(0.5)
            return await post_many(http, 31)

    with Server(slow_bundle, intra_op_threads=1, max_queue=32, max_images=32) as server:
        assert asyncio.run(go_away(server)).status_code == 200


# Batches


@pytest.fixture(scope="module")
def batching(demo_bundle: Path) -> Generator[Server]:
    with Server(demo_bundle, max_batch=8, max_delay_ms=200) as running:
        yield running


def test_requests_share_a_batch_and_answers_do_not_depend_on_who_shares_it(batching: Server) -> None:
    """Bit for bit: each image's logits come from a batch of 8, with other images beside it each time."""

    async def answers(order: list[int]) -> dict[int, object]:
        async with client(batching) as http:
            bodies = [encoded(i) for i in order]
            found = await asyncio.gather(*(post(http, body) for body in bodies))
            assert all(answer.json()["timing_ms"]["queue"] < 190 for answer in found)  # none waited in vain
            return {i: answer.json()["predictions"] for i, answer in zip(order, found, strict=True)}

    first = asyncio.run(answers([0, 1, 2, 3, 4, 5, 6, 7]))
    second = asyncio.run(answers([9, 7, 1, 8, 5, 10, 3, 0]))
    for i in (0, 1, 3, 5, 7):
        assert first[i] == second[i]


def test_a_bad_image_fails_alone_in_a_batch(batching: Server) -> None:
    async def mixed() -> list[httpx.Response]:
        async with client(batching) as http:
            bodies = [encoded(0), b"not an image", *(encoded(i) for i in range(1, 7)), encoded(7)[:50]]
            return list(await asyncio.gather(*(post(http, body) for body in bodies)))

    statuses = [answer.status_code for answer in asyncio.run(mixed())]
    assert statuses == [200, 422, *[200] * 6, 422]


def test_a_request_larger_than_a_batch_is_answered_in_order(batching: Server) -> None:
    with httpx.Client(base_url=batching.url, timeout=60) as http:
        together = upload(http, *(encoded(i) for i in range(16))).json()["predictions"]
        for i in (0, 7, 8, 15):
            alone = classify(http, encoded(i)).json()["predictions"][0]
            assert [p["label"] for p in together[i]] == [p["label"] for p in alone]


def test_several_instances_share_a_queue(demo_bundle: Path) -> None:
    async def many(server: Server) -> set[int]:
        async with client(server) as http:
            answers = await asyncio.gather(*(post(http, encoded(i % 16)) for i in range(64)))
            return {answer.status_code for answer in answers}

    with Server(demo_bundle, instances=2, intra_op_threads=1) as server:
        assert asyncio.run(many(server)) == {200}
        assert len(server.engines()) == 1
