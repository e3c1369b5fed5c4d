"""What /metrics say of what has happened, on the real server."""

import asyncio
import os
import re
import shutil
import signal
import time
from collections.abc import Generator
from pathlib import Path

import httpx
import numpy as np
import pytest

from exporters.options import ExportOptions
from lct_deploy.sample import DEMO_CHECKPOINT
from tests.conftest import export
from tests.scraping import OPENMETRICS, Scraped, scrape
from tests.serving import Server, classify, encoded, upload
from tests.test_engine import client, is_ready, jpeg, post, post_many, wait_for

STAGES = ("decode", "queue", "compute")
# Everything that can become of a request, told from the beginning so that `rate` sees the first one.
OUTCOMES = {
    "ok", "bad_request", "unauthorized", "rejected", "expired",
    "engine_lost", "unavailable", "failed", "client_gone",
}  # fmt: skip


@pytest.fixture
def server(demo_bundle: Path) -> Generator[Server]:
    with Server(demo_bundle, max_batch=8, max_delay_ms=50) as running:
        yield running


@pytest.fixture
def http(server: Server) -> Generator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as opened:
        yield opened


@pytest.fixture(scope="module")
def version_2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("version") / "2"
    export(DEMO_CHECKPOINT, path, ExportOptions(name="demo", version="2"))
    return path


def outcomes(scraped: Scraped, model: str = "demo") -> dict[str, float]:
    """Those that there were."""
    counts = {outcome: scraped("lct_requests_total", model=model, outcome=outcome) for outcome in OUTCOMES}
    return {outcome: count for outcome, count in counts.items() if count}


def settled(url: str) -> Scraped:
    """A scrape after the end of all requests, which comes shortly after their answers."""
    wait_for(lambda: scrape(url)("lct_requests_in_flight") == 0)
    return scrape(url)


def test_everything_starts_at_zero(server: Server) -> None:
    scraped = scrape(server.url)
    assert outcomes(scraped) == {}
    for stage in STAGES:
        assert scraped("lct_stage_duration_seconds_count", model="demo", stage=stage) == 0
    for name in ("lct_engine_restarts_total", "lct_unreadable_images_total", "lct_queue_images"):
        assert scraped(name, model="demo", version="1") == 0
    assert scraped("lct_model_load_failures_total", model="demo") == 0
    assert scraped("lct_queue_capacity_images", model="demo") == 256
    assert scraped("lct_ready") == scraped("lct_model_ready", model="demo") == 1
    how = {"arch": "lct_resnet20", "runtime": "onnxruntime", "precision": "fp32"}
    assert scraped("lct_model_info", model="demo", version="1", **how) == 1
    assert scraped("lct_build_info") == 1


def test_each_request_is_in_every_histogram(server: Server, http: httpx.Client) -> None:
    for i in range(5):
        assert classify(http, encoded(i)).status_code == 200
    assert upload(http, *(encoded(i) for i in range(16)), b"no image").status_code == 200
    scraped = settled(server.url)
    assert outcomes(scraped) == {"ok": 6}
    of_model = {"model": "demo", "version": "1"}
    assert scraped("lct_http_responses_total", method="POST", route="/v1/classify", status="200") == 6
    assert scraped("lct_request_duration_seconds_count", route="/v1/classify", **of_model) == 6
    stages = 0.0
    for stage in STAGES:
        assert scraped("lct_stage_duration_seconds_count", stage=stage, **of_model) == 6
        assert scraped("lct_stage_duration_seconds_bucket", stage=stage, le="+Inf", **of_model) == 6
        stages += scraped("lct_stage_duration_seconds_sum", stage=stage, **of_model)
    assert 0 < stages < scraped("lct_request_duration_seconds_sum", **of_model)
    assert scraped("lct_unreadable_images_total", **of_model) == 1
    # Five images came alone, sixteen together: two batches of the largest size.
    assert scraped("lct_batch_size_images_count", **of_model) == 7
    assert scraped("lct_batch_size_images_sum", **of_model) == 21
    assert scraped("lct_batch_size_images_bucket", le="4.0", **of_model) == 5
    assert 0 < scraped("lct_engine_busy_seconds_total", **of_model) < stages


def test_the_names_that_triton_gives_them(server: Server, http: httpx.Client) -> None:
    for i in range(3):
        classify(http, encoded(i))
    upload(http, *(encoded(i) for i in range(4)))
    scraped = settled(server.url)
    labels = {"model": "demo", "version": "1"}
    assert scraped("nv_inference_request_success", **labels) == 4
    assert scraped("nv_inference_request_failure", **labels) == 0
    assert scraped("nv_inference_count", **labels) == 7
    assert scraped("nv_inference_exec_count", **labels) == 4
    assert scraped("nv_inference_pending_request_count", **labels) == 0
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    taken = [scraped(f"nv_inference_{part}_duration_us", **labels) for part in parts]
    whole = scraped("nv_inference_request_duration_us", **labels)
    assert all(taken)
    assert 0.5 * whole < sum(taken) <= whole
    assert whole < 1e6 * scraped("lct_request_duration_seconds_sum", **labels)


def test_a_batch_counts_as_compute_for_each_of_its_requests(server: Server) -> None:
    """As with Triton: a request spends the whole time of its batch in it."""

    async def together() -> None:
        async with client(server) as http:
            await asyncio.gather(*(post(http, encoded(i)) for i in range(8)))

    asyncio.run(together())
    scraped = settled(server.url)
    batches = scraped("nv_inference_exec_count")
    assert batches < 8
    spent = scraped("nv_inference_compute_infer_duration_us") / 1e6
    assert spent == pytest.approx(scraped("lct_stage_duration_seconds_sum", stage="compute"), rel=0.01)
    assert scraped("lct_engine_busy_seconds_total") < spent


def test_requests_of_both_protocols_are_counted_alike(server: Server, http: httpx.Client) -> None:
    image = np.zeros((2, 28, 28, 3), np.uint8)
    tensor = {"name": "image", "shape": image.shape, "datatype": "UINT8", "data": image.ravel().tolist()}
    answer = http.post("/v2/models/demo/infer", json={"inputs": [tensor]})
    assert answer.status_code == 200, answer.text
    assert re.fullmatch(
        r"queue;dur=[\d.]+, compute;dur=[\d.]+, total;dur=[\d.]+", answer.headers["server-timing"]
    )
    http.post("/v2/models/none/infer", json={"inputs": [tensor]})
    http.post("/v2/models/demo/infer", json={"inputs": []})
    assert http.get("/v2/models/demo/ready").status_code == 200
    scraped = settled(server.url)
    assert outcomes(scraped) == {"ok": 1, "bad_request": 1}
    assert outcomes(scraped, model="") == {"bad_request": 1}
    assert scraped("lct_request_duration_seconds_count", route="/v2/models/{model}/infer") == 1
    assert scraped("lct_stage_duration_seconds_count", stage="decode") == 0
    assert scraped("lct_stage_duration_seconds_count", stage="compute") == 1
    assert scraped("nv_inference_count") == 2
    assert scraped.values_of("route") == {"/v2/models/{model}/infer"}


def test_what_is_wrong_with_a_request_is_its_outcome(server: Server, http: httpx.Client) -> None:
    classify(http, b"no image")
    classify(http, encoded(), "text/plain")
    classify(http, encoded(), model="none")
    http.get("/v1/classify")
    scraped = settled(server.url)
    assert outcomes(scraped) == {"bad_request": 1}
    assert outcomes(scraped, model="") == {"bad_request": 3}
    statuses = {
        status: scraped("lct_http_responses_total", route="/v1/classify", status=status)
        for status in ("422", "415", "404", "405")
    }
    assert set(statuses.values()) == {1}


def test_nobody_can_make_up_series(server: Server, http: httpx.Client) -> None:
    before = len(list(scrape(server.url).samples))
    for i in range(20):
        http.get(f"/made/up/{i}")
        http.request("PROPFIND", f"/v1/{i}")
        classify(http, encoded(), model=f"model-{i}")
    scraped = settled(server.url)
    assert scraped.values_of("model") == {"", "demo"}
    assert scraped.values_of("route") == {"unmatched", "/v1/classify"}
    assert len(list(scraped.samples)) <= before + 3


def test_questions_of_orchestrators_are_no_requests(server: Server, http: httpx.Client) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", "/metrics", "/docs", "/openapi.json"):
        assert http.get(path).status_code == 200
    scraped = scrape(server.url)
    assert scraped("lct_requests_total") == 0
    assert scraped("lct_requests_in_flight") == 0
    assert not scraped.has("lct_http_responses_total")


@pytest.mark.parametrize("accept", ["text/plain", "text/plain; version=1.0.0", OPENMETRICS, "*/*", ""])
def test_every_format_can_be_read(server: Server, http: httpx.Client, accept: str) -> None:
    classify(http, encoded())
    scraped = scrape(server.url, accept)
    assert scraped("lct_requests_total", outcome="ok") == 1
    assert scraped("nv_inference_count") == 1
    counters = {m.name for m in scraped.metrics if m.type == "counter"}
    assert {"lct_requests", "lct_http_responses", "lct_engine_busy_seconds"} <= counters
    histograms = {m.name for m in scraped.metrics if m.type == "histogram"}
    assert histograms == {
        "lct_request_duration_seconds", "lct_stage_duration_seconds", "lct_batch_size_images"
    }  # fmt: skip
    assert all(metric.documentation for metric in scraped.metrics)


def test_metrics_can_need_a_key(demo_bundle: Path) -> None:
    key = "a-key-for-prometheus"
    with Server(demo_bundle, metrics_keys=key) as server:
        assert httpx.get(f"{server.url}/metrics").status_code == 401
        allowed = httpx.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {key}"})
        assert allowed.status_code == 200


# What goes wrong


def test_a_full_queue_a_deadline_and_clients_that_go(slow_bundle: Path) -> None:
    """While the engine stands still, so that all of it happens whatever the machine's speed."""

    async def overload(server: Server) -> tuple[Scraped, list[int]]:
        (engine,) = server.engines()
        async with client(server) as http:
            os.kill(engine, signal.SIGSTOP)
            ahead = [asyncio.create_task(post_many(http, 8)) for _ in range(2)]
            leaving = asyncio.create_task(post_many(http, 4))
            while scrape(server.url)("lct_queue_images") < 20:
                await asyncio.sleep(0.1)
            late = await post(http, jpeg(), **{"X-Request-Timeout-Ms": "100"})
            refused = [await post_many(http, 8) for _ in range(2)]
            busy = await asyncio.to_thread(scrape, server.url)
            leaving.cancel()
            await asyncio.sleep(0.5)
            os.kill(engine, signal.SIGCONT)
            answers = [*refused, late, *await asyncio.gather(*ahead)]
            return busy, [answer.status_code for answer in answers]

    with Server(slow_bundle, intra_op_threads=1, max_queue=24, max_images=8) as server:
        busy, statuses = asyncio.run(overload(server))
        assert statuses == [503, 503, 504, 200, 200]
        assert busy("lct_requests_in_flight") == 3
        assert busy("lct_queue_images") == 21  # the late one's is the engine's until it says so
        assert busy("lct_queue_capacity_images") == 24
        wait_for(lambda: scrape(server.url)("lct_queue_images") == 0)
        scraped = settled(server.url)
        assert outcomes(scraped, "slow") == {"ok": 2, "rejected": 2, "expired": 1, "client_gone": 1}
        # Only requests that were answered say how long an answer takes.
        assert scraped("lct_request_duration_seconds_count") == 2


def test_an_engine_that_dies_is_counted_with_what_it_took_along(slow_bundle: Path) -> None:
    async def kill(server: Server) -> list[int]:
        async with client(server) as http:
            lost = asyncio.create_task(post_many(http, 60))
            await asyncio.sleep(0.3)
            behind = [asyncio.create_task(post(http, jpeg())) for _ in range(2)]
            while scrape(server.url)("nv_inference_pending_request_count") < 3:
                await asyncio.sleep(0.01)
            os.kill(server.engines()[0], signal.SIGKILL)
            return [answer.status_code for answer in await asyncio.gather(lost, *behind)]

    with Server(slow_bundle, intra_op_threads=1) as server:
        with httpx.Client(base_url=server.url, timeout=60) as http:
            classify(http, jpeg(), "image/jpeg")
        assert scrape(server.url)("nv_inference_count") == 1
        assert asyncio.run(kill(server)) == [503, 200, 200]
        wait_for(lambda: is_ready(server.url))
        scraped = settled(server.url)
        assert outcomes(scraped, "slow") == {"ok": 3, "engine_lost": 1}
        assert scraped("lct_engine_restarts_total", model="slow") == 1
        assert scraped("lct_queue_images") == 0
        assert scraped("nv_inference_count") == 2  # the new engine's


def test_no_engine_is_not_ready_and_loses_nothing(demo_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "demo"))
    with Server(bundle) as server, httpx.Client(base_url=server.url, timeout=60) as http:
        (bundle / "model.onnx").rename(bundle / "away.onnx")
        os.kill(server.engines()[0], signal.SIGKILL)
        wait_for(lambda: classify(http, encoded()).status_code == 503)
        scraped = settled(server.url)
        assert scraped("lct_ready") == scraped("lct_model_ready", model="demo") == 0
        assert outcomes(scraped).keys() <= {"ok", "unavailable"}
        assert scraped("lct_requests_total", outcome="unavailable") >= 1
        assert not scraped.has("nv_inference_count", model="demo")
        (bundle / "away.onnx").rename(bundle / "model.onnx")
        wait_for(lambda: is_ready(server.url))
        assert scrape(server.url)("lct_engine_restarts_total") == 1


def test_an_engine_that_hangs_does_not_hang_the_scrape(demo_bundle: Path) -> None:
    with Server(demo_bundle) as server:
        (engine,) = server.engines()
        os.kill(engine, signal.SIGSTOP)
        try:
            began = time.monotonic()
            scraped = scrape(server.url)
            assert time.monotonic() - began < 3
            assert scraped("lct_build_info") == 1
            assert not scraped.has("nv_inference_count", model="demo")
        finally:
            os.kill(engine, signal.SIGCONT)
        assert scrape(server.url)("nv_inference_count", model="demo") == 0


# Models that come and go


def test_another_version_takes_the_place_of_the_series(
    demo_bundle: Path, version_2: Path, tmp_path: Path
) -> None:
    shutil.copytree(demo_bundle, tmp_path / "demo")
    with Server(tmp_path / "demo") as server, httpx.Client(base_url=server.url, timeout=60) as http:
        classify(http, encoded())
        (tmp_path / "demo").rename(tmp_path / "old")
        shutil.copytree(version_2, tmp_path / "demo")
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: not scrape(server.url).has("lct_requests_total", version="1"))
        classify(http, encoded())
        scraped = settled(server.url)
        assert scraped.values_of("version") - {"0.1.0"} == {"", "2"}
        assert scraped("lct_requests_total", model="demo", version="2", outcome="ok") == 1
        assert scraped("lct_model_info", model="demo") == 1


def test_a_model_that_is_unloaded_takes_its_series_along(demo_bundle: Path) -> None:
    key = "a-key-for-administrators"
    with Server(demo_bundle, admin_keys=key) as server, httpx.Client(base_url=server.url, timeout=60) as http:
        allowed = {"Authorization": f"Bearer {key}"}
        classify(http, encoded())
        assert http.post("/v2/repository/models/demo/unload", headers=allowed).status_code == 200
        assert classify(http, encoded(), model="demo").status_code == 404
        scraped = settled(server.url)
        # How often it could not be loaded is still of interest.
        assert {n for n, has, _ in scraped.samples if has.get("model") == "demo"} == {
            "lct_model_load_failures_total"
        }
        assert scraped("lct_ready") == 0
        assert http.post("/v2/repository/models/demo/load", headers=allowed).status_code == 200
        classify(http, encoded())
        scraped = settled(server.url)
        assert outcomes(scraped) == {"ok": 1}
        assert scraped("lct_queue_capacity_images", model="demo") == 256


def test_the_same_version_loaded_again_counts_on(demo_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "demo"))
    with Server(bundle) as server, httpx.Client(base_url=server.url, timeout=60) as http:
        classify(http, encoded())
        (old,) = server.engines()
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: old not in server.engines())
        classify(http, encoded())
        scraped = settled(server.url)
        assert outcomes(scraped) == {"ok": 2}
        assert scraped("lct_queue_images", model="demo") == 0
        assert scraped("lct_queue_capacity_images", model="demo") == 256


def test_a_model_that_cannot_be_loaded_is_counted(demo_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "demo"))
    with Server(bundle) as server:
        (bundle / "model.onnx").write_bytes(b"damaged")
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: scrape(server.url)("lct_model_load_failures_total", model="demo") == 1)
        assert scrape(server.url)("lct_model_ready", model="demo") == 1


# Several processes


def test_processes_that_share_a_directory_count_together(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    with Server(demo_bundle) as one, Server(demo_bundle) as other:
        for server, count in ((one, 2), (other, 3)):
            with httpx.Client(base_url=server.url, timeout=60) as http:
                for i in range(count):
                    assert classify(http, encoded(i)).status_code == 200
        for server in (one, other):
            scraped = settled(server.url)
            assert outcomes(scraped) == {"ok": 5}
            assert scraped("lct_stage_duration_seconds_count", stage="compute") == 5
            assert scraped("lct_stage_duration_seconds_bucket", stage="compute", le="+Inf") == 5
            assert scraped("lct_queue_capacity_images") == 512
            assert scraped("lct_queue_images") == 0
            assert scraped("lct_model_info", model="demo") == scraped("lct_ready") == 1
            assert "pid" not in {label for _, labels, _ in scraped.samples for label in labels}
        assert scrape(one.url, OPENMETRICS)("lct_requests_total", outcome="ok") == 5


def test_a_model_replaced_where_processes_share_leaves_zeros(
    demo_bundle: Path, version_2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "metrics").mkdir()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "metrics"))
    shutil.copytree(demo_bundle, tmp_path / "demo")
    with Server(tmp_path / "demo") as server:
        (tmp_path / "demo").rename(tmp_path / "old")
        shutil.copytree(version_2, tmp_path / "demo")
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: scrape(server.url).has("lct_model_info", version="2"))
        wait_for(lambda: scrape(server.url)("lct_queue_capacity_images", version="1") == 0)
        scraped = scrape(server.url)
        assert not scraped.has("lct_model_info", version="1")
        assert scraped("lct_queue_capacity_images", version="2") == 256
    assert "Traceback" not in server.messages()
