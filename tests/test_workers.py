"""Several workers in front of the same engines: one server, whatever happens to one of its processes."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from pydantic import SecretStr

from exporters.options import ExportOptions
from lct_deploy.cores import available_cores
from lct_deploy.sample import DEMO_CHECKPOINT
from server.settings import ServerSettings
from server.workers.defaults import MOST, settled
from server.workers.shares import environment_of, share_of
from tests.conftest import QuickCli, export
from tests.leaving import Callers, closing_request
from tests.scraping import scrape
from tests.serving import Server, classify, encoded
from tests.test_engine import wait_for
from tests.v2 import ADMIN, ADMIN_KEY, INFER, ask, document, expected, logits_of, tensor

WORKERS = 2


@pytest.fixture(scope="module")
def server(demo_bundle: Path) -> Generator[Server]:
    """Every test leaves it whole, with however many workers replaced."""
    with Server(demo_bundle, workers=WORKERS, admin_keys=ADMIN_KEY) as running:
        yield running


@contextlib.contextmanager
def one_of_each(server: Server) -> Generator[list[httpx.Client]]:
    """A connection to each worker."""
    with contextlib.ExitStack() as stack:
        found: dict[str, httpx.Client] = {}
        while len(found) < WORKERS:
            http = stack.enter_context(httpx.Client(base_url=server.url, timeout=60, headers=ADMIN))
            found.setdefault(worker_of(server, http), http)
        yield [found[number] for number in sorted(found)]


def worker_of(server: Server, http: httpx.Client) -> str:
    """The number of the worker that answers on a connection."""
    request = str(uuid.uuid4())
    assert http.get("/v1/models", headers={"X-Request-Id": request}).status_code == 200
    lines: list[str] = []

    def is_logged() -> bool:
        lines[:] = [line["worker"] for line in server.log() if line.get("request_id") == request]
        return bool(lines)

    wait_for(is_logged)
    return lines[0]


def recovered(server: Server, lost: int) -> None:
    """Wait until another worker has come for the one that was `lost`, and takes requests."""
    wait_for(lambda: lost not in server.workers() and len(server.workers()) == WORKERS)
    wait_for(lambda: how_often(server, "ended with") == how_often(server, "is back after"))


def how_often(server: Server, what: str) -> int:
    """Lines about workers."""
    return sum(line["message"].startswith("worker ") and what in line["message"] for line in server.log())


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


# What one worker answers, several do


def test_the_processes_are_as_many_as_were_asked_for(server: Server, demo_bundle: Path) -> None:
    assert len(server.workers()) == WORKERS
    assert len(server.engines()) == 1
    with Server(demo_bundle) as alone:
        assert alone.workers() == []
        assert len(alone.engines()) == 1


def test_every_worker_gives_the_same_answers(server: Server, demo_bundle: Path) -> None:
    demo = expected(demo_bundle)
    with one_of_each(server) as clients:
        for http in clients:
            logits = logits_of(ask(http, document(tensor(demo.images)), INFER))
            np.testing.assert_allclose(logits, demo.logits, atol=1e-4)
            assert classify(http, encoded()).json()["predictions"][0][0]["label"] == "Ankle boot"
            assert http.get("/v2/health/ready").json() == {"ready": True}
            assert [card["name"] for card in http.get("/v1/models").json()] == ["demo"]
            assert http.get("/").status_code == 200
            assert httpx.post(f"{server.url}/v2/repository/models/demo/load").status_code == 401


def test_no_worker_is_left_without_connections(server: Server) -> None:
    with contextlib.ExitStack() as stack:
        answering: Counter[str] = Counter()
        for _ in range(8):
            http = stack.enter_context(httpx.Client(base_url=server.url, timeout=60))
            answering[worker_of(server, http)] += 1
    assert len(answering) == WORKERS  # how many exactly is up to the kernel


def test_every_worker_tells_the_sum(server: Server) -> None:
    with one_of_each(server) as clients:
        before = scrape(server.url)
        for http in clients:
            for i in range(3):
                assert classify(http, encoded(i)).status_code == 200
        wait_for(lambda: scrape(server.url)("lct_requests_in_flight") == 0)
        for http in clients:
            after = scrape(server.url)
            for name in ("lct_requests_total", "lct_http_responses_total", "nv_inference_request_success"):
                assert after(name) - before(name) >= 3 * WORKERS
            of_stage = {"stage": "compute"}
            counted = after("lct_stage_duration_seconds_count", **of_stage)
            assert counted - before("lct_stage_duration_seconds_count", **of_stage) == 3 * WORKERS
            assert after("lct_queue_images") == 0
            assert after("lct_queue_capacity_images") == 256
            assert after("process_max_fds") > after("process_open_fds") > 5 * (WORKERS + 1)
            assert after("process_resident_memory_bytes") > 40e6 * (WORKERS + 1)
            assert time.time() - 600 < after("process_start_time_seconds") < time.time()
            (statistics,) = http.get("/v2/models/demo/stats").json()["model_stats"]
            assert statistics["inference_count"] == after("nv_inference_count")


# Models


def test_what_is_changed_through_one_worker_holds_for_all_when_that_is_answered(server: Server) -> None:
    with one_of_each(server) as clients:
        for http in clients:
            assert http.post("/v2/repository/models/demo/unload").status_code == 200
            for other in clients:
                assert classify(other, encoded(), model="demo").status_code == 404
                assert not other.get("/v2/health/ready").json()["ready"]
                (entry,) = other.post("/v2/repository/index").json()
                assert (entry["state"], entry["reason"]) == ("UNAVAILABLE", "not loaded")
            assert not scrape(server.url).has("lct_requests_total", model="demo")
            assert http.post("/v2/repository/models/demo/load").status_code == 200
            for other in clients:
                assert classify(other, encoded()).status_code == 200
                assert other.post("/v2/repository/index").json()[0]["state"] == "READY"
        for action in ("load", "unload"):
            refused = clients[0].post(f"/v2/repository/models/nobody/{action}")
            assert refused.status_code == 404
            assert "'nobody'" in refused.json()["error"]


def test_no_request_fails_while_models_are_replaced(demo_bundle: Path, tmp_path: Path) -> None:
    """And one that fails its checks leaves the old one, with every worker."""
    export(DEMO_CHECKPOINT, tmp_path / "2", ExportOptions(name="demo", version="2"))
    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "demo"))
    with Server(bundle, workers=WORKERS, admin_keys=ADMIN_KEY) as server, one_of_each(server) as clients:
        stop, statuses = threading.Event(), list[int]()

        def keep_asking(number: int) -> None:
            with httpx.Client(base_url=server.url, timeout=60) as http:
                while not stop.is_set():
                    statuses.append(classify(http, encoded(number)).status_code)

        threads = [threading.Thread(target=keep_asking, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        try:
            bundle.rename(tmp_path / "1")
            shutil.copytree(tmp_path / "2", bundle)
            assert clients[0].post("/v2/repository/models/demo/load").status_code == 200
            assert [classify(http, encoded()).json()["version"] for http in clients] == ["2"] * WORKERS
            (bundle / "model.onnx").write_bytes(b"damaged")
            failed = clients[1].post("/v2/repository/models/demo/load")
            assert failed.status_code == 400
            assert "failed its checks" in failed.json()["error"]
            assert [classify(http, encoded()).json()["version"] for http in clients] == ["2"] * WORKERS
            assert scrape(server.url)("lct_model_load_failures_total", model="demo") == 1
            shutil.rmtree(bundle)
            (tmp_path / "1").rename(bundle)
            server.process.send_signal(signal.SIGHUP)
            wait_for(lambda: all(classify(h, encoded()).json()["version"] == "1" for h in clients))
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert len(statuses) > 20
        assert set(statuses) == {200}


# Processes that die


def test_a_worker_that_is_killed_takes_only_its_own_requests_along(server: Server) -> None:
    """While the engine stands still, so that both have one."""
    (engine,) = server.engines()
    lost, number = server.workers()[0], number_of(server.workers()[0])
    with one_of_each(server) as clients, ThreadPoolExecutor() as threads:
        wait_for(lambda: scrape(server.url)("lct_requests_in_flight") == 0)
        before = scrape(server.url)
        (own,) = (http for http in clients if worker_of(server, http) == number)
        (other,) = (http for http in clients if http is not own)
        os.kill(engine, signal.SIGSTOP)
        doomed, waiting = (threads.submit(classify, http, encoded()) for http in (own, other))
        wait_for(lambda: scrape(server.url)("lct_queue_images") == 2)
        os.kill(lost, signal.SIGKILL)
        with pytest.raises(httpx.TransportError):
            doomed.result()
        recovered(server, lost)
        os.kill(engine, signal.SIGCONT)
        assert waiting.result().status_code == 200
        assert server.engines() == [engine]
    wait_for(lambda: scrape(server.url)("lct_requests_in_flight") == 0)
    after = scrape(server.url)
    # What it had counted is kept, to the last one.
    assert after("process_cpu_seconds_total") >= before("process_cpu_seconds_total")
    assert after("lct_requests_total", model="demo") == before("lct_requests_total", model="demo") + 1
    assert after("lct_worker_restarts_total") == before("lct_worker_restarts_total") + 1
    assert after("lct_queue_images") == 0
    assert after("lct_queue_capacity_images") == 256
    assert f"worker {number} ended with signal 9" in server.messages()


def number_of(pid: int) -> str:
    command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return command[command.index("server.workers") + 1]


def test_a_worker_that_hangs_is_replaced(server: Server) -> None:
    lost = server.workers()[-1]
    os.kill(lost, signal.SIGSTOP)
    recovered(server, lost)
    assert "has not answered for 10 s: it is killed" in server.messages()
    with one_of_each(server) as clients:
        for http in clients:
            assert classify(http, encoded()).status_code == 200


def test_an_engine_that_is_killed_comes_back_for_all_workers(server: Server) -> None:
    before = scrape(server.url)("lct_engine_restarts_total", model="demo")
    (engine,) = server.engines()
    with one_of_each(server) as clients:
        os.kill(engine, signal.SIGKILL)
        # Nothing was being computed: what comes now waits for the next engine.
        assert [classify(http, encoded()).status_code for http in clients] == [200] * WORKERS
    assert server.engines() != [engine]
    assert scrape(server.url)("lct_engine_restarts_total", model="demo") == before + 1


def test_what_waits_with_any_worker_goes_to_the_next_engine(server: Server) -> None:
    """Requests of all workers, none of which has begun to be computed."""
    (engine,) = server.engines()
    with one_of_each(server) as clients, ThreadPoolExecutor() as threads:
        os.kill(engine, signal.SIGSTOP)
        answers = [threads.submit(classify, http, encoded(i)) for i, http in enumerate(clients)]
        wait_for(lambda: scrape(server.url)("lct_queue_images") == WORKERS)
        os.kill(engine, signal.SIGKILL)
        assert [answer.result().status_code for answer in answers] == [200] * WORKERS
    assert server.engines() != [engine]


def test_workers_that_die_at_once_are_started_later_and_later(server: Server) -> None:
    for _ in range(2):
        lost = server.workers()[-1]  # the one that was started last
        os.kill(lost, signal.SIGKILL)
        recovered(server, lost)
    assert "the next one is started in 0.5 s" in server.messages()
    assert "the next one is started in 1 s" in server.messages()


def test_a_server_whose_workers_cannot_start_does_not(demo_bundle: Path, tmp_path: Path) -> None:
    program = "import os, sys\nif 'server.workers' in sys.orig_argv:\n    os._exit(3)\n"
    (tmp_path / "sitecustomize.py").write_text(program)
    path = os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))
    command = [sys.executable, "-m", "lct_deploy", "serve", str(demo_bundle), "--port", "0", "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "error: worker 1 ended with exit code 3 while it was starting" in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_is_left_when_the_supervisor_is_killed(demo_bundle: Path) -> None:
    server = Server(demo_bundle, workers=WORKERS)
    directory = metrics_directory(server)
    processes = [*server.workers(), *server.engines()]
    server.process.kill()
    server.process.communicate()
    for pid in processes:
        wait_for(lambda pid=pid: is_gone(pid))
    wait_for(lambda: not directory.exists())


def metrics_directory(server: Server) -> Path:
    environment = Path(f"/proc/{server.workers()[0]}/environ").read_text().split("\0")
    (value,) = [v.partition("=")[2] for v in environment if v.startswith("PROMETHEUS_MULTIPROC_DIR=")]
    return Path(value)


# Stopping


def test_nobody_who_was_let_in_is_lost(demo_bundle: Path) -> None:
    for how in (signal.SIGTERM, signal.SIGINT):
        server = Server(demo_bundle, workers=WORKERS)
        directory, processes = metrics_directory(server), [*server.workers(), *server.engines()]
        callers = Callers(server.url, closing_request("/v1/classify", encoded(), "image/png"), count=8)
        time.sleep(0.5)
        code, messages = server.stop(how)
        assert code == 0, messages
        assert "Traceback" not in messages
        outcomes = callers.join()
        assert outcomes["answered"] > 0
        assert outcomes.keys() == {"answered", "refused"}, outcomes
        assert all(is_gone(pid) for pid in processes)
        assert not directory.exists()


def test_requests_in_flight_are_answered_and_the_drain_is_told(demo_bundle: Path) -> None:
    server = Server(demo_bundle, workers=WORKERS, drain_seconds=2)
    address = server.url.removeprefix("http://").split(":")
    request = closing_request("/v1/classify", encoded(), "image/png")
    with one_of_each(server) as clients, socket.create_connection((address[0], int(address[1]))) as slow:
        slow.sendall(request[:200])
        server.process.send_signal(signal.SIGTERM)
        for http in clients:
            wait_for(lambda http=http: http.get("/v2/health/ready").status_code == 503)
        assert httpx.get(f"{server.url}/v2/health/live").status_code == 200
        answer = classify(clients[0], encoded())
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        slow.sendall(request[200:])
        assert slow.recv(65536).startswith(b"HTTP/1.1 200")
    assert server.process.wait(timeout=60) == 0
    server.process.communicate()


# Settings


def test_a_small_network_has_a_worker_a_core_unless_told_otherwise(demo_bundle: Path) -> None:
    with Server(demo_bundle, workers=None) as server, httpx.Client(base_url=server.url) as http:
        assert len(server.workers()) == min(available_cores(), MOST)
        assert classify(http, encoded()).status_code == 200


@pytest.fixture
def large(demo_bundle: Path, tmp_path: Path) -> Path:
    """A manifest of LCT-ResNet50 at 224 pixels; more than that is not read."""
    manifest = json.loads((demo_bundle / "manifest.json").read_text())
    manifest["arch"], manifest["name"] = "lct_resnet50", "large"
    manifest["input"].update(height=224, width=224)
    path = tmp_path / "large"
    path.mkdir()
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def test_who_needs_the_cores_for_networks_has_one(
    demo_bundle: Path, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.workers.defaults.available_cores", lambda: 3)

    def workers(*bundles: Path, **settings: Any) -> int:
        return settled(ServerSettings(bundles=bundles, **settings)).processes

    assert workers(demo_bundle) == 3
    assert workers(demo_bundle, workers=2) == 2
    assert workers(large) == 1
    assert workers(demo_bundle, large) == 1
    assert workers(demo_bundle, provider="cuda") == 1
    assert workers(demo_bundle, runtime="tensorrt-rtx") == 1
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/metrics")
    assert workers(demo_bundle) == 1


def test_decoding_threads_follow_the_workers(demo_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("server.workers.defaults", "server.settings"):
        monkeypatch.setattr(f"{module}.available_cores", lambda: 8)
    key = SecretStr("0123456789abcdef")
    found = settled(ServerSettings(bundles=(demo_bundle,), max_queue=100, infer_keys=key))
    assert (found.workers, found.decode_threads, found.max_queue, found.infer_keys) == (MOST, 1, 100, key)
    assert settled(ServerSettings(bundles=(demo_bundle,), decode_threads=3)).decode_threads == 3


def test_a_worker_is_told_everything_and_its_share(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = {"LCT_INFER_KEYS": "0123456789abcdef", "lct_port": "1234", "LCT_PRECISION": "fp16"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    settings = ServerSettings(bundles=(tmp_path / "a b", Path("ü")), workers=4, max_queue=100, otel=True)
    share = share_of(settings)
    assert (share.max_queue, share.max_buffered_bytes) == (64, 64 << 20)
    monkeypatch.setenv("LCT_CPU_ISA", "baseline")
    for name in list(os.environ):
        monkeypatch.delenv(name) if name.upper() in told else None
    environment = environment_of(share)
    assert environment["LCT_CPU_ISA"] == "baseline"
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert ServerSettings() == share  # pyright: ignore[reportCallIssue] - from the environment


@pytest.mark.parametrize(
    ("arguments", "settings", "code", "message"),
    [
        (["nowhere"], {}, 1, "no such bundle"),
        (["BUNDLE", "BUNDLE"], {}, 2, "are both demo version 1"),
        (["BUNDLE"], {"LCT_ADMIN_KEYS": "short"}, 2, "an API key has to be"),
        (["BUNDLE"], {"PROMETHEUS_MULTIPROC_DIR": "metrics"}, 2, "PROMETHEUS_MULTIPROC_DIR is set"),
        (["BUNDLE", "--workers", "0"], {}, 2, "workers"),
    ],
)
def test_what_cannot_be_served_is_said(
    quick_cli: QuickCli,
    demo_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    settings: dict[str, str],
    code: int,
    message: str,
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    told = ["--port", "0", "--workers", "2"]
    done = quick_cli("serve", *told, *[demo_bundle if a == "BUNDLE" else a for a in arguments])
    assert done.returncode == code
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stdout == ""


def test_no_workers_at_all_are_refused_in_one_line(quick_cli: QuickCli, demo_bundle: Path) -> None:
    done = quick_cli("serve", demo_bundle, "--workers", 0)
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["error: workers: Input should be greater than or equal to 1"]
