"""Models that come, go and are replaced while the server runs."""

import asyncio
import os
import shutil
import signal
import time
from pathlib import Path

import httpx
import pytest

from exporters.options import ExportOptions
from lct_deploy.sample import DEMO_CHECKPOINT
from server.sources import chosen, scan, version_key
from tests.conftest import QuickCli, export
from tests.serving import Server, assert_problem, classify, encoded


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo bundle as several versions of one model."""
    directory = tmp_path_factory.mktemp("versions")
    for version in ("1", "9", "10"):
        export(DEMO_CHECKPOINT, directory / version, ExportOptions(name="shoes", version=version))
    return {path.name: path for path in directory.iterdir()}


def place(bundle: Path, target: Path) -> Path:
    """A bundle put where it belongs at one go, as `export` does it."""
    hidden = target.parent / f".{target.name}"
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(bundle, hidden)
    hidden.rename(target)
    return target


def version_of(http: httpx.Client, model: str = "shoes") -> str:
    answer = classify(http, encoded(), model=model)
    return answer.json()["version"] if answer.status_code == 200 else str(answer.status_code)


def reload(server: Server, http: httpx.Client, expected: str) -> None:
    server.process.send_signal(signal.SIGHUP)
    until = time.monotonic() + 60
    while version_of(http) != expected:
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_repository_serves_the_latest_version_and_a_reload_the_next(
    versions: dict[str, Path], tmp_path: Path
) -> None:
    place(versions["9"], tmp_path / "shoes" / "9")
    place(versions["1"], tmp_path / "shoes" / "1")
    with Server(tmp_path) as server, httpx.Client(base_url=server.url, timeout=60) as http:
        assert version_of(http) == "9"
        (old,) = server.engines()
        place(versions["10"], tmp_path / "shoes" / "10")
        assert version_of(http) == "9"
        reload(server, http, "10")
        until = time.monotonic() + 30
        while old in server.engines():
            assert time.monotonic() < until
            time.sleep(0.1)


def test_no_request_fails_while_models_are_replaced(versions: dict[str, Path], tmp_path: Path) -> None:
    """Clients without a pause; versions 9 and 10 alternate, so that every reload changes the answer."""
    place(versions["9"], tmp_path / "shoes")

    async def ask(http: httpx.AsyncClient, seen: list[str], stop: asyncio.Event) -> None:
        while not stop.is_set():
            answer = await http.post("/v1/classify", content=encoded(), headers={"Content-Type": "image/png"})
            seen.append(answer.json()["version"] if answer.status_code == 200 else answer.text)

    async def run(server: Server) -> list[str]:
        seen: list[str] = []
        stop = asyncio.Event()
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            clients = [asyncio.create_task(ask(http, seen, stop)) for _ in range(4)]
            for version in ("10", "9", "10"):
                replacement = place(versions[version], tmp_path / f"next-{version}")
                old = tmp_path / "old"
                (tmp_path / "shoes").rename(old)
                replacement.rename(tmp_path / "shoes")
                shutil.rmtree(old)
                server.process.send_signal(signal.SIGHUP)
                while seen[-1:] != [version]:
                    await asyncio.sleep(0.05)
            stop.set()
            await asyncio.gather(*clients)
        return seen

    with Server(tmp_path / "shoes") as server:
        seen = asyncio.run(run(server))
    assert set(seen) == {"9", "10"}
    assert len(seen) > 20


def test_a_bundle_that_fails_its_checks_leaves_the_old_one_serving(
    versions: dict[str, Path], tmp_path: Path
) -> None:
    place(versions["9"], tmp_path / "shoes" / "9")
    server = Server(tmp_path)
    with httpx.Client(base_url=server.url, timeout=60) as http:
        bad = place(versions["10"], tmp_path / "shoes" / "10")
        with (bad / "model.onnx").open("r+b") as file:
            file.write(b"damaged")
        server.process.send_signal(signal.SIGHUP)
        time.sleep(3)
        assert version_of(http) == "9"
        assert http.get("/v2/health/ready").status_code == 200
    code, messages = server.stop()
    assert code == 0
    assert "shoes was not loaded" in messages
    assert "model.onnx has changed since it was verified" in messages


def test_named_versions_are_served_side_by_side(versions: dict[str, Path]) -> None:
    paths = [versions["9"], versions["10"]]
    with Server(*paths) as server, httpx.Client(base_url=server.url, timeout=60) as http:
        assert version_of(http) == "10"
        assert len(server.engines()) == 2
        assert_problem(classify(http, encoded(), model="boots"), 404, "there is shoes")


def test_a_repository_with_nothing_that_can_be_served(quick_cli: QuickCli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = quick_cli("serve", tmp_path, "--port", "0")
    assert done.returncode == 1
    assert "not a bundle" in done.stderr


# What is chosen


def test_versions_are_in_the_order_of_their_numbers() -> None:
    names = ["2", "10", "1.9", "1.10", "v3", "1.0-rc1", "1.0"]
    assert sorted(names, key=version_key) == ["v3", "1.0-rc1", "1.0", "1.9", "1.10", "2", "10"]


def test_what_is_written_and_what_is_broken_is_passed_over(versions: dict[str, Path], tmp_path: Path) -> None:
    place(versions["1"], tmp_path / "shoes" / "1")
    shutil.copytree(versions["9"], tmp_path / "shoes" / ".9.being-written")
    broken = tmp_path / "boots"
    broken.mkdir()
    (broken / "manifest.json").write_text("{")
    sources, unreadable = scan([tmp_path])
    assert [(s.name, s.version) for s in sources] == [("shoes", "1")]
    assert [b.name for b in unreadable] == ["boots"]
    assert [s.version for s in chosen(sources, "shoes")] == ["1"]
    assert os.listdir(broken) == ["manifest.json"]  # noqa: PTH208
