"""The HTTP service, called over real sockets."""

import json
import signal
import socket
import time
from collections.abc import Generator
from pathlib import Path

import httpx
import numpy as np
import pytest

from exporters.options import ExportOptions
from lct_deploy.bundle import open_bundle
from lct_deploy.predictions import predict_files
from lct_deploy.runtime import RuntimeOptions, open_bundled
from lct_deploy.sample import DEMO_CHECKPOINT
from server.listening import bind, listen, turn_away
from tests.conftest import QuickCli, export
from tests.leaving import Callers, closing_request
from tests.serving import Server, assert_problem, classify, encoded, upload


@pytest.fixture(scope="module")
def server(demo_bundle: Path) -> Generator[Server]:
    with Server(demo_bundle) as running:
        yield running


@pytest.fixture(scope="module")
def http(server: Server) -> Generator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


def test_a_raw_image_gets_the_answer_that_predict_gives(
    http: httpx.Client, demo_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "image.png").write_bytes(encoded())
    bundle = open_bundle(demo_bundle)
    runtime = open_bundled(bundle, "onnxruntime", RuntimeOptions())
    expected = predict_files(bundle, runtime, [tmp_path / "image.png"], k=5).images[0].predictions
    answer = classify(http, encoded())
    assert answer.status_code == 200
    body = answer.json()
    assert (body["model"], body["version"]) == ("demo", "1")
    assert body["predictions"] == [[p.model_dump() for p in expected]]
    assert body["predictions"][0][0]["label"] == "Ankle boot"
    assert set(body["timing_ms"]) == {"decode", "queue", "compute", "total"}
    assert body["timing_ms"]["total"] >= body["timing_ms"]["compute"] > 0


@pytest.mark.parametrize(
    ("kind", "media"), [("JPEG", "image/jpeg"), ("WEBP", "image/webp"), ("PNG", "IMAGE/PNG; x=y")]
)
def test_every_accepted_format(http: httpx.Client, kind: str, media: str) -> None:
    answer = classify(http, encoded(kind=kind), media)
    assert answer.status_code == 200
    assert answer.json()["predictions"][0][0]["label"] == "Ankle boot"


@pytest.mark.parametrize(("k", "count"), [(1, 1), (3, 3), (10, 10), (1000, 10)])
def test_top_k(http: httpx.Client, k: int, count: int) -> None:
    predictions = classify(http, encoded(), top_k=k).json()["predictions"][0]
    probabilities = [p["probability"] for p in predictions]
    assert len(predictions) == count
    assert probabilities == sorted(probabilities, reverse=True)
    if count == 10:
        assert sum(probabilities) == pytest.approx(1)


def test_several_images_are_answered_in_order_and_a_bad_one_fails_alone(http: httpx.Client) -> None:
    answer = upload(http, encoded(0), b"not an image", encoded(2), b"")
    assert answer.status_code == 200
    first, bad, third, empty = answer.json()["predictions"]
    assert first == classify(http, encoded(0)).json()["predictions"][0]
    assert [p["label"] for p in third] == [
        p["label"] for p in classify(http, encoded(2)).json()["predictions"][0]
    ]
    assert "supported format" in bad["error"]
    assert "0 bytes" in empty["error"]


def test_one_image_may_be_sent_as_a_form(http: httpx.Client) -> None:
    assert upload(http, encoded()).json()["predictions"][0][0]["label"] == "Ankle boot"


def test_images_are_independent_of_the_requests_beside_them(http: httpx.Client) -> None:
    alone = [classify(http, encoded(i)).json()["predictions"][0] for i in range(8)]
    together = upload(http, *(encoded(i) for i in range(8))).json()["predictions"]
    for a, b in zip(alone, together, strict=True):
        assert a[0]["label"] == b[0]["label"]
        assert a[0]["probability"] == pytest.approx(b[0]["probability"], abs=1e-5)


@pytest.mark.parametrize(
    ("body", "media", "status", "detail"),
    [
        (b"", "image/png", 422, "empty (0 bytes)"),
        (b"hello", "image/png", 422, "not an image in a supported format"),
        (encoded()[:60], "image/png", 422, "damaged image"),
        (encoded(kind="GIF"), "image/png", 422, "send JPEG, PNG or WebP"),
        (encoded(), "text/plain", 415, "send image/jpeg"),
        (encoded(), "", 415, "no Content-Type"),
        (b"x", "multipart/form-data", 400, "Missing boundary"),
        (b"--b\r\nbroken", "multipart/form-data; boundary=b", 400, "form"),
    ],
)
def test_bad_bodies(http: httpx.Client, body: bytes, media: str, status: int, detail: str) -> None:
    headers = {"Content-Type": media} if media else {}
    assert_problem(http.post("/v1/classify", content=body, headers=headers), status, detail)


def test_an_image_over_the_pixel_limit_is_413_by_its_header(http: httpx.Client) -> None:
    header = bytearray(encoded())
    header[16:24] = (9000).to_bytes(4, "big") * 2
    header[29:33] = __import__("zlib").crc32(header[12:29]).to_bytes(4, "big")
    assert_problem(classify(http, bytes(header)), 413, "over the limit of 50 megapixels")


@pytest.mark.parametrize("top_k", ["0", "-1", "x", "1001"])
def test_bad_top_k(http: httpx.Client, top_k: str) -> None:
    assert_problem(classify(http, encoded(), top_k=top_k), 400, "top_k")


def test_unknown_model_path_and_method(http: httpx.Client) -> None:
    assert_problem(classify(http, encoded(), model="nope"), 404, "there is demo")
    assert_problem(http.get("/v1/nothing"), 404, "")
    assert_problem(http.get("/v1/classify"), 405, "")


def test_forms_with_the_wrong_parts(http: httpx.Client) -> None:
    assert_problem(upload(http, encoded(), name="image"), 400, "unknown form parts image")
    assert_problem(http.post("/v1/classify", files=[("file", (None, b"text"))]), 400, "filename")
    assert_problem(upload(http, *[encoded()] * 65), 400, "Too many files")


def test_health_and_documentation(http: httpx.Client) -> None:
    assert http.get("/v2/health/live").json() == {"live": True}
    assert http.get("/v2/health/ready").json() == {"ready": True}
    assert http.get("/docs").status_code == 200
    operation = http.get("/openapi.json").json()["paths"]["/v1/classify"]["post"]
    assert set(operation["requestBody"]["content"]) == {
        "image/jpeg", "image/png", "image/webp", "multipart/form-data",
    }  # fmt: skip
    assert {"200", "400", "404", "413", "415", "422"} <= set(operation["responses"])


def test_the_log_says_what_is_served_and_on_what(demo_bundle: Path) -> None:
    _, messages = Server(demo_bundle).stop()
    assert "serving demo version 1: fp32 on CPUExecutionProvider (onnxruntime 1." in messages


def test_requests_in_flight_are_answered_after_sigterm(demo_bundle: Path) -> None:
    server = Server(demo_bundle)
    address = server.url.removeprefix("http://").split(":")
    body = encoded()
    with socket.create_connection((address[0], int(address[1]))) as slow:
        slow.sendall(
            b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: image/png\r\n"
            b"Content-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body[:100]
        )
        time.sleep(0.3)  # the request is under way before the signal
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        slow.sendall(body[100:])
        answer = b"".join(iter(lambda: slow.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"Ankle boot" in answer
    assert server.process.wait(timeout=30) == 0
    server.process.communicate()


def test_a_connection_that_was_let_in_last_has_the_time_to_send_its_request(demo_bundle: Path) -> None:
    server = Server(demo_bundle)
    address = server.url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1]))) as late:
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.4)
        late.sendall(closing_request("/v1/classify", encoded(), "image/png"))
        answer = b"".join(iter(lambda: late.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200")
    assert server.process.wait(timeout=30) == 0
    server.process.communicate()


def test_who_is_turned_away_is_not_let_in_and_who_was_let_in_goes_on() -> None:
    with bind("127.0.0.1", 0) as listener, socket.socket() as late:
        listen(listener)
        with socket.create_connection(listener.getsockname()) as early:
            turn_away(listener)
            late.settimeout(0.3)
            with pytest.raises(TimeoutError):
                late.connect(listener.getsockname())
            accepted, _ = listener.accept()
            with accepted:
                early.sendall(b"a request")
                accepted.settimeout(10)
                assert accepted.recv(100) == b"a request"
            with pytest.raises(BlockingIOError):
                listener.accept()


def test_nobody_who_was_let_in_is_lost(demo_bundle: Path) -> None:
    for _ in range(3):
        server = Server(demo_bundle)
        callers = Callers(server.url, closing_request("/v1/classify", encoded(), "image/png"), count=8)
        time.sleep(0.5)
        code, messages = server.stop()
        assert code == 0, messages
        outcomes = callers.join()
        assert outcomes["answered"] > 0
        assert outcomes.keys() == {"answered", "refused"}, outcomes


def test_sigint_stops_it_cleanly_too(demo_bundle: Path) -> None:
    code, messages = Server(demo_bundle).stop(signal.SIGINT)
    assert code == 0
    assert "Traceback" not in messages


def test_several_models(demo_bundle: Path, tmp_path: Path) -> None:
    export(DEMO_CHECKPOINT, tmp_path / "second", ExportOptions(version="9"))
    with Server(demo_bundle, tmp_path / "second") as server, httpx.Client(base_url=server.url) as http:
        assert_problem(classify(http, encoded()), 400, "demo, second")
        assert classify(http, encoded(), model="second").json()["version"] == "9"
        assert classify(http, encoded(), model="demo").json()["model"] == "demo"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere"], 1, "no such bundle"),
        (["BUNDLE", "BUNDLE"], 2, "are both demo version 1"),
        (["BUNDLE", "--runtime", "nope"], 1, "holds no fp32 graph that nope can run"),
        (["BUNDLE", "--port", "70000"], 2, "port"),
        (["BUNDLE", "--host", "not-a-host.invalid"], 2, "cannot listen"),
        (["BUNDLE", "--intra-op-threads", "0"], 2, "intra_op_threads"),
        (["BUNDLE", "--log-level", "loud"], 2, "log_level"),
    ],
)
def test_what_cannot_be_served_is_said(
    quick_cli: QuickCli, demo_bundle: Path, arguments: list[str], code: int, message: str
) -> None:
    done = quick_cli("serve", *[demo_bundle if a == "BUNDLE" else a for a in arguments])
    assert done.returncode == code
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stdout == ""


def test_a_port_in_use_is_said(quick_cli: QuickCli, demo_bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = quick_cli("serve", demo_bundle, "--port", taken.getsockname()[1])
    assert done.returncode == 2
    assert "cannot listen" in done.stderr


def test_a_bundle_that_answers_wrongly_on_this_machine_is_not_served(
    quick_cli: QuickCli, demo_bundle: Path, tmp_path: Path
) -> None:
    """A consistent bundle (all hashes right) whose golden logits the runtime does not reproduce."""
    import shutil

    from lct_deploy.atomic import sha256_file

    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    golden = open_bundle(bundle).golden()
    np.savez_compressed(bundle / "golden.npz", images=golden.images, logits=golden.logits + 0.5)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["golden"]["sha256"] = sha256_file(bundle / "golden.npz")
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    done = quick_cli("serve", bundle, "--port", "0")
    assert done.returncode == 1
    assert "does not give PyTorch's answers on this machine" in done.stderr
