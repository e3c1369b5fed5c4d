"""What a request costs the client: ours beside the usual ones, in CPU time of its process.

`python -m benchmarks.serving.clients` sends photographs to a server that reads and answers, nothing more,
and writes benchmarks/results/serving-clients.csv. A client that is not installed is left out.
"""

import asyncio
import gc
import itertools
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from importlib import import_module, util
from typing import Annotated, Any

import typer
import uvloop

from benchmarks.rows import RESULTS, write_rows
from benchmarks.serving.client import ClosedLoop, Job
from benchmarks.serving.command import run_command
from benchmarks.serving.photos import photos
from benchmarks.serving.requests import Target, raw, target
from lct_deploy.errors import LctDeployError
from lct_deploy.progress import track

CALLERS = 8
SERVER = """
import uvicorn
async def app(scope, receive, send):
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-type", b"application/json"), (b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"{}"})
listener = __import__("socket").create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
config = uvicorn.Config(app, loop="uvloop", http="httptools", log_level="error", lifespan="off")
uvicorn.Server(config).run(sockets=[listener])
"""

Client = Callable[[str, float], Awaitable[int]]  # URL, seconds → requests answered


def main(
    rounds: Annotated[int, typer.Option(min=1)] = 7,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each measurement.")] = 3.0,
) -> None:
    """Compare what clients cost."""
    clients = {name: run for name, run in CLIENTS.items() if name == "ours" or util.find_spec(name)}
    photos()  # made once, before anything is timed
    jobs = list(itertools.product(range(rounds), clients))
    with _server() as url:
        rows = [
            {"client": name, "round": number, **_measure(clients[name], url, seconds)}
            for number, name in track(jobs, "measuring", total=len(jobs))
        ]
    write_rows(RESULTS / "serving-clients.csv", rows)
    for name in clients:
        costs = sorted(row["cpu_microseconds"] for row in rows if row["client"] == name)
        print(f"{name:<10} {costs[len(costs) // 2]:8.1f} µs of CPU a request")


@contextmanager
def _server() -> Generator[str]:
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as server:  # noqa: S603
        assert server.stdout is not None  # noqa: S101 - it is piped
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}/"
        finally:
            server.kill()


def _measure(client: Client, url: str, seconds: float) -> dict[str, Any]:
    gc.collect()
    started = time.process_time()
    requests = uvloop.run(_await(client(url, seconds)))
    spent = time.process_time() - started
    if not requests:
        raise LctDeployError("no request was answered", hint="--seconds longer")
    return {"requests": requests, "cpu_microseconds": round(1e6 * spent / requests, 2)}


async def _await(asked: Awaitable[int]) -> int:
    return await asked


def _where(url: str) -> Target:
    return target(url, [raw(photo) for photo in photos()])


async def _ours(url: str, seconds: float) -> int:
    where = _where(url)
    job = Job(host=where.host, port=where.port, loop="closed", seconds=seconds, connections=CALLERS)
    return len((await ClosedLoop(job, where.requests, announce=lambda: None).run()).rows)


async def _aiohttp(url: str, seconds: float) -> int:
    session: Any = import_module("aiohttp").ClientSession(auto_decompress=False)

    async def ask(photo: bytes) -> None:
        async with session.post(url, data=photo, headers={"Content-Type": "image/jpeg"}) as answer:
            await answer.read()

    async with session:
        return await _callers(ask, seconds)


async def _httpx(url: str, seconds: float) -> int:
    session: Any = import_module("httpx").AsyncClient(trust_env=False)

    async def ask(photo: bytes) -> None:
        await session.post(url, content=photo, headers={"Content-Type": "image/jpeg"})

    async with session:
        return await _callers(ask, seconds)


async def _callers(ask: Callable[[bytes], Awaitable[None]], seconds: float) -> int:
    end = time.perf_counter() + seconds
    answered = itertools.count()

    async def caller() -> None:
        for photo in itertools.cycle(photos()):
            if time.perf_counter() >= end:
                return
            await ask(photo)
            next(answered)

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return next(answered)


CLIENTS: dict[str, Client] = {"ours": _ours, "aiohttp": _aiohttp, "httpx": _httpx}


if __name__ == "__main__":
    run_command(main)
