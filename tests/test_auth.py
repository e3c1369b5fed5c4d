"""API keys, over HTTP and in the settings."""

from collections.abc import Generator
from pathlib import Path

import httpx
import pytest

from tests.conftest import QuickCli
from tests.serving import Server, assert_problem, encoded

KEYS = {group: f"{group}-0123456789abcdef" for group in ("infer", "admin", "metrics")}


@pytest.fixture(scope="module")
def server(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"# who may\ninfer {KEYS['infer']}  # the shop\n\nmetrics\t{KEYS['metrics']}\n")
    with Server(
        demo_bundle, keys_file=file, infer_keys="second-0123456789abc, third-0123456789abcd"
    ) as running:
        yield running


def post(server: Server, **headers: str) -> httpx.Response:
    return httpx.post(
        f"{server.url}/v1/classify", content=encoded(), headers={"Content-Type": "image/png", **headers}
    )


@pytest.mark.parametrize("key", [KEYS["infer"], "second-0123456789abc", "third-0123456789abcd"])
def test_a_key_of_the_group_is_let_in(server: Server, key: str) -> None:
    assert post(server, Authorization=f"Bearer {key}").status_code == 200
    assert post(server, authorization=f"bearer {key}").status_code == 200


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        KEYS["infer"],
        f"Basic {KEYS['infer']}",
        f"Bearer {KEYS['metrics']}",
        f"Bearer {KEYS['infer']}x",
        f"Bearer {KEYS['infer'][:-1]}",
        f"Bearer {KEYS['infer'].upper()}",
        "Bearer " + "x" * 5000,
    ],
)
def test_all_others_are_401_and_told_why(server: Server, authorization: str) -> None:
    answer = post(server, **({"Authorization": authorization} if authorization else {}))
    assert_problem(answer, 401, "needs an API key of the group infer")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_health_needs_no_key(server: Server) -> None:
    for probe in ("live", "ready"):
        assert httpx.get(f"{server.url}/v2/health/{probe}").status_code == 200


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("infer\n", "line 1: not a group and a key"),
        ("\nroot 0123456789abcdef\n", "line 2: not a group and a key"),
        ("infer short", "16 to 512 visible"),
        ("infer 0123456789abcdef\u00e9", "visible ASCII"),
        (None, "cannot be read"),
    ],
)
def test_keys_that_are_none_stop_the_server(
    quick_cli: QuickCli,
    demo_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: str | None,
    message: str,
) -> None:
    if content is not None:
        (tmp_path / "keys").write_text(content)
    monkeypatch.setenv("LCT_KEYS_FILE", str(tmp_path / "keys"))
    done = quick_cli("serve", demo_bundle, "--port", "0")
    assert done.returncode == 2
    assert message in done.stderr


def test_a_short_key_in_the_environment_is_refused_and_not_shown(
    quick_cli: QuickCli, demo_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LCT_INFER_KEYS", "0123456789abcdef,hunter2")
    done = quick_cli("serve", demo_bundle, "--port", "0")
    assert done.returncode == 2
    assert "infer: an API key has to be" in done.stderr
    assert "hunter2" not in done.stderr


def test_pages_of_other_origins_may_call_only_where_that_is_set(demo_bundle: Path) -> None:
    asked = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
    with Server(demo_bundle) as closed:
        answer = httpx.options(f"{closed.url}/v1/classify", headers=asked)
        assert "access-control-allow-origin" not in answer.headers
    with Server(demo_bundle, cors_origins="https://shop.example, https://other.example") as opened:
        answer = httpx.options(f"{opened.url}/v1/classify", headers=asked)
        assert answer.headers["access-control-allow-origin"] == "https://shop.example"
        assert "access-control-allow-origin" not in post(opened, Origin="https://evil.example").headers
