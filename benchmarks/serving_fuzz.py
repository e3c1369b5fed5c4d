"""Damaged images and damaged V2 requests, sent to a running server.

`python -m benchmarks.serving_fuzz URL --images 20000 --bodies 20000` mutates files for /v1/classify and
requests for /v2, counts the answers by status in benchmarks/results/serving_fuzz.csv, and fails where one
is a 5xx, is not in the form that its path has, or does not come. What the protocol provides for is no
failure: 503 with Retry-After from a server that is busy, 504 where a request set a timeout, an idle
connection that was closed. Afterwards the server has to give the answers that it gave before.

The same `--seed` sends the same requests; those that failed are kept in `--failures`.
"""

import argparse
import http.client
import json
import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

from benchmarks.mutations import MEDIA_TYPES, Case, Target, image_files, mutate_image, mutate_request
from benchmarks.rows import RESULTS, write_rows
from lct_deploy.progress import progress_bar

LOST = "lost"
_SECONDS = 60
_SOUND = 22  # files whose answers are compared before and after
_PATIENCE = 3  # answers of 503 before a request counts as one


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A request that was not answered as it should have been."""

    kind: str
    index: int
    case: Case
    why: str


@dataclass(kw_only=True)
class Outcome:
    """What all requests came to."""

    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # kind, mutation, status
    failures: list[Failure] = field(default_factory=list)


class Client:
    """A connection that is kept while the server keeps it."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_SECONDS)

    def ask(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Answer:
        """Raises OSError or HTTPException where no answer comes over a fresh connection either."""
        fresh = self._connection.sock is None
        try:
            return self._ask(method, path, body, headers or {})
        except (OSError, http.client.HTTPException):
            self._connection.close()
            if fresh:
                raise
            return self._ask(method, path, body, headers or {})

    def close(self) -> None:
        self._connection.close()

    def _ask(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        self._connection.request(method, path, body, headers)
        response = self._connection.getresponse()
        names = {name.lower(): value for name, value in response.getheaders()}
        return Answer(status=response.status, headers=names, body=response.read())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--bodies", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--output", type=Path, default=RESULTS / "serving_fuzz.csv")
    parser.add_argument("--failures", type=Path, default=Path("runs/serving_fuzz"))
    arguments = parser.parse_args()
    before = sound_answers(arguments.url)
    outcome = fuzz(
        arguments.url,
        {"image": arguments.images, "body": arguments.bodies},
        seed=arguments.seed,
        clients=arguments.clients,
    )
    changed = [name for name, answer in sound_answers(arguments.url).items() if answer != before[name]]
    _report(outcome, changed, arguments.output, arguments.failures, seed=arguments.seed)
    sys.exit(1 if outcome.failures or changed else 0)


def find_target(url: str) -> Target:
    """The first model that is ready."""
    with closing(Client(url)) as client:
        index = json.loads(client.ask("POST", "/v2/repository/index", b'{"ready": true}').body)
        name, version = index[0]["name"], index[0]["version"]
        metadata = json.loads(client.ask("GET", f"/v2/models/{name}").body)
    _, height, width, _ = metadata["inputs"][0]["shape"]
    return Target(name=name, version=version, input=metadata["inputs"][0]["name"], height=height, width=width)


def fuzz(url: str, wanted: dict[str, int], *, seed: int, clients: int) -> Outcome:
    """Send as many mutated requests of each kind (image, body) as are `wanted`."""
    files, target = image_files(), find_target(url)
    make: dict[str, Callable[[Random], Case]] = {
        "image": lambda random: mutate_image(random, files),
        "body": lambda random: mutate_request(random, target, files),
    }
    work = iter([(kind, index) for kind, count in wanted.items() for index in range(count)])
    outcome, lock = Outcome(), threading.Lock()
    with progress_bar() as bar, ThreadPoolExecutor(clients) as threads:
        task = bar.add_task("fuzzing", total=sum(wanted.values()), status="")

        def send_all() -> None:
            with closing(Client(url)) as client:
                for kind, index in _shared(work, lock):
                    case = make[kind](generator(f"{seed} {kind} {index}"))
                    status, why = judge(client, case)
                    with lock:
                        outcome.counts[kind, case.mutation, status] += 1
                        if why:
                            outcome.failures.append(Failure(kind=kind, index=index, case=case, why=why))
                        bar.update(task, advance=1, status=f"{len(outcome.failures)} failures")

        for done in [threads.submit(send_all) for _ in range(clients)]:
            done.result()
    return outcome


def generator(seed: str) -> Random:
    """Nothing secret; text seeds it the same in every process."""
    return Random(seed)  # noqa: S311


def _shared(work: Iterator[tuple[str, int]], lock: threading.Lock) -> Iterable[tuple[str, int]]:
    while True:
        with lock:
            item = next(work, None)
        if item is None:
            return
        yield item


def judge(client: Client, case: Case) -> tuple[str, str]:
    """The status of the answer to `case`, and what is wrong with it: nothing, if that is empty."""
    try:
        answer = client.ask("POST", case.path, case.body, case.headers)
        for _ in range(_PATIENCE):
            if answer.status != 503 or "retry-after" not in answer.headers:
                break
            time.sleep(0.2)
            answer = client.ask("POST", case.path, case.body, case.headers)
    except (OSError, http.client.HTTPException) as error:
        return LOST, f"no answer: {error!r}"
    return str(answer.status), _complaint(case, answer)


def _complaint(case: Case, answer: Answer) -> str:
    if answer.status == 503 and "retry-after" in answer.headers:
        return ""
    if answer.status == 504 and b"timeout" in case.body:
        return ""
    if answer.status >= 500:
        return f"status {answer.status}: {answer.body[:200]!r}"
    if answer.status == 200:
        return ""
    try:
        document = json.loads(answer.body)
    except ValueError:
        return f"status {answer.status} without JSON: {answer.body[:200]!r}"
    member = "error" if case.path.startswith("/v2/") else "detail"
    told = isinstance(document, dict) and isinstance(document.get(member), str) and document[member]
    return "" if told else f"status {answer.status} that does not say why: {answer.body[:200]!r}"


def sound_answers(url: str) -> dict[str, Any]:
    """What the server says to requests that are right, but for the times that they took."""
    target = find_target(url)
    shape = [1, target.height, target.width, 3]
    tensor = {"name": target.input, "datatype": "UINT8", "shape": shape, "data": [7] * math.prod(shape)}
    asked = [
        Case(
            mutation=f"{index} {file.format}",
            path="/v1/classify",
            body=file.data,
            headers={"Content-Type": MEDIA_TYPES[file.format]},
        )
        for index, file in enumerate(image_files()[:_SOUND])
    ]
    path, request = f"/v2/models/{target.name}/infer", json.dumps({"inputs": [tensor]}).encode()
    asked.append(Case(mutation="tensor", path=path, body=request))
    with closing(Client(url)) as client:
        return {case.mutation: _sound_answer(client, case) for case in asked}


def _sound_answer(client: Client, case: Case) -> Any:
    answer = client.ask("POST", case.path, case.body, case.headers)
    if answer.status != 200:
        raise SystemExit(f"sound {case.mutation} is answered with {answer.status}: {answer.body!r}")
    document = json.loads(answer.body)
    return document["outputs"] if "outputs" in document else document["predictions"]


def _report(outcome: Outcome, changed: list[str], output: Path, kept: Path, *, seed: int) -> None:
    rows = [
        {"kind": kind, "mutation": mutation, "status": status, "count": count, "seed": seed}
        for (kind, mutation, status), count in sorted(outcome.counts.items())
    ]
    write_rows(output, rows)
    for kind in sorted({kind for kind, _, _ in outcome.counts}):
        by_status: Counter[str] = Counter()
        for (this, _, status), count in outcome.counts.items():
            by_status[status] += count if this == kind else 0
        statuses = ", ".join(f"{count} × {status}" for status, count in sorted(by_status.items()) if count)
        print(f"{kind}: {statuses}")
    for failure in outcome.failures:
        _keep(failure, kept, seed)
    if changed:
        print(f"the server no longer answers as before: {', '.join(changed)}")
    print(f"{len(outcome.failures)} failures; {output}")


def _keep(failure: Failure, kept: Path, seed: int) -> None:
    case = failure.case
    path = kept / f"{failure.kind}-{seed}-{failure.index}"
    kept.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".body").write_bytes(case.body)
    about = {"path": case.path, "headers": case.headers, "mutation": case.mutation, "why": failure.why}
    path.with_suffix(".json").write_text(json.dumps(about, indent=2))
    print(f"{failure.kind} {failure.index} ({case.mutation}): {failure.why}; kept as {path}.body")


if __name__ == "__main__":
    main()
