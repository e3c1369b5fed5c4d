"""Damaged images and requests against the real server; and a server that fails, which has to be noticed."""

import csv
import socket
import threading
from collections import Counter
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from benchmarks import serving_fuzz
from benchmarks.mutations import Case, Target, image_files, mutate_image, mutate_request
from benchmarks.serving_fuzz import LOST, Client, find_target, fuzz, generator, judge, sound_answers
from tests.v2 import serving

TARGET = Target(name="demo", version="1", input="image", height=28, width=28)
CASE = Case(mutation="none", path="/v2/models/demo/infer", body=b"{}")


@pytest.fixture(scope="module")
def url(demo_bundle: Path) -> Generator[str]:
    with serving(demo_bundle) as url:
        yield url


def test_every_damaged_request_is_answered(url: str) -> None:
    assert find_target(url) == TARGET
    before = sound_answers(url)
    outcome = fuzz(url, {"image": 200, "body": 400}, seed=7, clients=2)
    assert outcome.failures == []
    statuses = Counter[str]()
    for (_, _, status), count in outcome.counts.items():
        statuses[status] += count
    assert statuses.total() == 600
    assert {"200", "400", "415", "422"} <= set(statuses)  # some of it has to get through
    assert sound_answers(url) == before


def test_the_command_writes_what_it_counted(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "fuzz.csv"
    arguments = ["fuzz", url, "--images", "5", "--bodies", "6", "--output", str(output)]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as stop:
        serving_fuzz.main()
    assert stop.value.code == 0
    with output.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert sum(int(row["count"]) for row in rows if row["kind"] == "image") == 5
    assert sum(int(row["count"]) for row in rows if row["kind"] == "body") == 6
    assert "0 failures" in capsys.readouterr().out


def test_a_seed_says_what_is_sent() -> None:
    files = image_files()
    for seed in range(50):
        images = [mutate_image(generator(f"{seed}"), files) for _ in range(2)]
        requests = [mutate_request(generator(f"{seed}"), TARGET, files) for _ in range(2)]
        assert images[0] == images[1]
        assert requests[0] == requests[1]


@contextmanager
def answering(*answers: bytes) -> Generator[str]:
    """A server that gives each of `answers` to a connection of its own, whatever is asked."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


def response(status: int, body: bytes = b'{"error": "why"}', headers: str = "") -> bytes:
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


CLOSE = "Connection: close\r\n"
BUSY = response(503, headers=f"Retry-After: 1\r\n{CLOSE}")


@pytest.mark.parametrize(
    ("answers", "status", "complaint"),
    [
        ([response(200, b"anything")], "200", ""),
        ([response(400)], "400", ""),
        ([response(400, b"<html>")], "400", "without JSON"),
        ([response(400, b"{}")], "400", "does not say why"),
        ([response(400, b'{"detail": "of another path"}')], "400", "does not say why"),
        ([response(500)], "500", "status 500"),
        ([response(503)], "503", "status 503"),
        ([BUSY, response(400)], "400", ""),
        ([BUSY] * 4, "503", ""),
        ([response(504)], "504", "status 504"),
        ([b""], LOST, "no answer"),
        ([b"HTTP/1.1 200 X\r\nContent-Length: 10\r\n\r\nhalf"], LOST, "no answer"),
    ],
)
def test_what_is_wrong_is_noticed(answers: list[bytes], status: str, complaint: str) -> None:
    with answering(*answers) as url, closing(Client(url)) as client:
        got, why = judge(client, CASE)
    assert got == status
    assert (complaint in why) if complaint else not why


def test_a_deadline_of_ones_own_is_no_failure() -> None:
    body = b'{"parameters": {"timeout": 1}}'
    with answering(response(504)) as url, closing(Client(url)) as client:
        assert judge(client, Case(mutation="none", path="/v2/x", body=body)) == ("504", "")


def test_an_idle_connection_that_was_closed_is_opened_again() -> None:
    with answering(response(200), response(200)) as url, closing(Client(url)) as client:
        assert client.ask("GET", "/").status == 200
        assert client.ask("GET", "/").status == 200  # the server has hung up in between
