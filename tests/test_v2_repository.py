"""The repository while a server runs: what it holds, loading, unloading; and what the routes document."""

import json
import shutil
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import numpy as np
import pytest
import tritonclient.http as triton

from tests.serving import Server
from tests.v2 import ADMIN, ask, assert_error, document, expected, logits_of, serving, tensor

IMAGE = tensor(np.zeros((1, 28, 28, 3), np.uint8))


@pytest.fixture(scope="module")
def url(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """Two models; every test leaves both loaded."""
    second = Path(shutil.copytree(demo_bundle, tmp_path_factory.mktemp("bundles") / "second"))
    manifest = json.loads((second / "manifest.json").read_text())
    (second / "manifest.json").write_text(json.dumps({**manifest, "name": "second", "version": "9"}))
    with serving(demo_bundle, second) as url:
        yield url


@pytest.fixture(scope="module")
def http(url: str) -> Generator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60, headers=ADMIN) as client:
        yield client


def index(http: httpx.Client, body: Any = None) -> dict[str, str]:
    answer = http.post("/v2/repository/index") if body is None else ask(http, body, "/v2/repository/index")
    assert answer.status_code == 200
    return {entry["name"]: entry["state"] for entry in answer.json()}


def change(http: httpx.Client, name: str, action: str, body: Any = None) -> httpx.Response:
    path = f"/v2/repository/models/{name}/{action}"
    return http.post(path) if body is None else ask(http, body, path)


def test_index(http: httpx.Client) -> None:
    entries = http.post("/v2/repository/index").json()
    assert sorted((e["name"], e["version"], e["state"]) for e in entries) == [
        ("demo", "1", "READY"),
        ("second", "9", "READY"),
    ]


@pytest.mark.parametrize("body", [{}, {"ready": True}, {"ready": False}, {"ready": None}])
def test_index_of_what_is_ready(http: httpx.Client, body: Any) -> None:
    assert index(http, body) == {"demo": "READY", "second": "READY"}


@pytest.mark.parametrize(
    ("body", "text"), [(b"[]", "object"), (b"x", "JSON"), (b'{"ready": 1}', "true or false")]
)
def test_bad_index_requests(http: httpx.Client, body: bytes, text: str) -> None:
    assert_error(http.post("/v2/repository/index", content=body), 400, text)


def test_unload_and_load(http: httpx.Client, url: str, demo_bundle: Path) -> None:
    client = triton.InferenceServerClient(url.removeprefix("http://"), network_timeout=60)
    client.unload_model("second", headers=ADMIN, unload_dependents=True)
    try:
        assert index(http) == {"demo": "READY", "second": "UNAVAILABLE"}
        assert index(http, {"ready": True}) == {"demo": "READY"}
        (entry,) = [e for e in client.get_model_repository_index() if e["name"] == "second"]
        assert entry["reason"] == "not loaded"
        assert not client.is_model_ready("second")
        assert client.is_model_ready("demo")
        for path in ("/infer", "/unload"):
            where = "/v2/models/second/infer" if path == "/infer" else "/v2/repository/models/second/unload"
            assert_error(ask(http, document(IMAGE), where), 404, "'second'")
        assert_error(http.get("/v2/models/second"), 404, "no model 'second'")
        (only,) = http.get("/v2/models/stats").json()["model_stats"]
        assert only["name"] == "demo"
    finally:
        client.load_model("second", headers=ADMIN)
        client.close()
    assert index(http) == {"demo": "READY", "second": "READY"}
    demo = expected(demo_bundle)
    logits = logits_of(ask(http, document(tensor(demo.images)), "/v2/models/second/versions/9/infer"))
    np.testing.assert_allclose(logits, demo.logits, atol=1e-4)


def test_a_loaded_model_can_be_loaded_again_while_it_answers(http: httpx.Client, url: str) -> None:
    statuses: list[int] = []
    stop = threading.Event()

    def keep_asking() -> None:
        with httpx.Client(base_url=url, timeout=60) as mine:
            while not stop.is_set():
                statuses.append(ask(mine, document(IMAGE), "/v2/models/second/infer").status_code)

    thread = threading.Thread(target=keep_asking)
    thread.start()
    try:
        for body in (None, {}, {"parameters": {}}, {"parameters": {"mine": "x"}}):
            assert change(http, "second", "load", body).status_code == 200
    finally:
        stop.set()
        thread.join()
    assert len(statuses) > 4
    assert set(statuses) == {200}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"parameters": {"config": "{}"}}, "the parameter config is refused"),
        ({"parameters": {"file:1/model.onnx": "AAAA"}}, "the parameter file:1/model.onnx is refused"),
        ({"parameters": {"other": 1, "config": "{}"}}, "config is refused"),
        ({"parameters": {"triton_x": 1}}, "is reserved"),
        ({"parameters": 1}, "has to be an object"),
        ([], "has to be an object"),
    ],
)
def test_a_client_cannot_bring_a_model(http: httpx.Client, body: Any, text: str) -> None:
    assert_error(change(http, "second", "load", body), 400, text)
    assert index(http) == {"demo": "READY", "second": "READY"}


def test_the_clients_own_overrides_are_refused(url: str) -> None:
    with (
        triton.InferenceServerClient(url.removeprefix("http://")) as client,
        pytest.raises(triton.InferenceServerException, match="config is refused"),
    ):
        client.load_model("second", headers=ADMIN, config='{"backend": "python"}')


@pytest.mark.parametrize("action", ["load", "unload"])
def test_changes_need_an_admins_key(http: httpx.Client, url: str, demo_bundle: Path, action: str) -> None:
    path = f"/v2/repository/models/second/{action}"
    assert_error(httpx.post(f"{url}{path}"), 401, "API key of the group admin")
    with Server(demo_bundle) as without:
        assert_error(httpx.post(f"{without.url}{path}", headers=ADMIN), 403, "LCT_ADMIN_KEYS")
    assert index(http) == {"demo": "READY", "second": "READY"}


@pytest.mark.parametrize("action", ["load", "unload"])
@pytest.mark.parametrize("name", ["other", "..", "%2e%2e%2fetc", "second%00", "SECOND"])
def test_names_that_the_repository_does_not_have(http: httpx.Client, name: str, action: str) -> None:
    assert_error(change(http, name, action), 404, "")


@pytest.mark.parametrize("action", ["load", "unload"])
def test_large_requests_are_413(http: httpx.Client, action: str) -> None:
    assert_error(http.post(f"/v2/repository/models/second/{action}", content=bytes(2 << 20)), 413, "limit")


def test_statistics_of_all_models(http: httpx.Client) -> None:
    for name in ("demo", "second"):
        assert ask(http, document(IMAGE), f"/v2/models/{name}/infer").status_code == 200
    every = {m["name"]: m for m in http.get("/v2/models/stats").json()["model_stats"]}
    assert set(every) == {"demo", "second"}
    for name, version in (("demo", "1"), ("second", "9")):
        (own,) = http.get(f"/v2/models/{name}/versions/{version}/stats").json()["model_stats"]
        assert own == every[name] == http.get(f"/v2/models/{name}/stats").json()["model_stats"][0]


# ---- documentation ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def openapi(http: httpx.Client) -> dict[str, Any]:
    return http.get("/openapi.json").json()


def schema(openapi: dict[str, Any], path: str, method: str, status: str = "200") -> dict[str, Any]:
    answer = openapi["paths"][path][method]["responses"][status]
    return {**answer["content"]["application/json"]["schema"], "components": openapi["components"]}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("get", "/v2"),
        ("get", "/v2/models/stats"),
        ("get", "/v2/models/{model}"),
        ("get", "/v2/models/{model}/versions/{version}"),
        ("get", "/v2/models/{model}/ready"),
        ("get", "/v2/models/{model}/config"),
        ("get", "/v2/models/{model}/stats"),
        ("get", "/v2/models/{model}/versions/{version}/stats"),
        ("post", "/v2/repository/index"),
    ],
)
def test_answers_are_as_documented(http: httpx.Client, openapi: Any, method: str, path: str) -> None:
    answer = http.request(method, path.format(model="second", version="9"))
    assert answer.status_code == 200
    jsonschema.validate(answer.json(), schema(openapi, path, method))
    failed = http.request(method, path.format(model="other", version="9"))
    if failed.status_code != 200:
        documented = schema(openapi, path, method, str(failed.status_code))
        jsonschema.validate(failed.json(), documented)


@pytest.mark.parametrize("path", ["/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"])
@pytest.mark.parametrize("outputs", [[], [{"name": "logits", "parameters": {"classification": 2}}]])
def test_inference_is_as_documented(http: httpx.Client, openapi: Any, path: str, outputs: Any) -> None:
    operation = openapi["paths"][path]["post"]
    content = operation["requestBody"]["content"]
    assert set(content) == {"application/json", "application/octet-stream"}
    assert "422" not in operation["responses"]  # nothing of FastAPI's own
    request = document(IMAGE, id="x", parameters={"priority": 1}, outputs=outputs)
    jsonschema.validate(request, content["application/json"]["schema"])
    answer = ask(http, request, path.format(model="second", version="9"))
    jsonschema.validate(answer.json(), schema(openapi, path, "post"))
    failed = ask(http, {}, path.format(model="second", version="9"))
    jsonschema.validate(failed.json(), schema(openapi, path, "post", "400"))
