"""Throughput by wrk, which costs the cores that it shares with the server least of all clients."""

import json
import math
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.serving.connection import Outcome
from benchmarks.serving.figures import NAMES, OK, Figures
from benchmarks.serving.requests import Target
from lct_deploy.errors import LctDeployError, RuntimeUnavailableError

SCRIPT = Path(__file__).with_name("wrk.lua")
WARM_UP_SECONDS = 1
TIMEOUT_SECONDS = 20  # after which wrk counts an answer as late; it is counted all the same
GRACE_SECONDS = 30  # for wrk to end


def wrk_version() -> str | None:
    """None where it is not installed."""
    if shutil.which("wrk") is None:
        return None
    done = subprocess.run(["wrk", "--version"], capture_output=True, text=True, check=False)  # noqa: S607
    return (done.stdout + done.stderr).split()[1]


def required_wrk() -> str:
    """Its version; raises RuntimeUnavailableError where it is not installed."""
    if (version := wrk_version()) is None:
        raise RuntimeUnavailableError("wrk is not installed", hint="apt-get install wrk")
    return version


def run_wrk(target: Target, *, connections: int, seconds: float, prefix: Sequence[str] = ()) -> Figures:
    """So many callers, each of which asks again once it is answered; raises RuntimeUnavailableError.

    wrk takes whole seconds. What is answered in the first one is not counted: with batches and a queue, the
    server does work in it whose answers come later, as at the end it does work whose answers come too late.
    Connections that fail count from the start. `prefix` is a command that runs it, such as taskset.
    """
    required_wrk()
    duration = max(1, math.ceil(seconds))
    with tempfile.TemporaryDirectory(prefix="lct-wrk.") as directory:
        files = [Path(directory) / f"{i}" for i in range(len(target.requests))]
        for file, request in zip(files, target.requests, strict=True):
            file.write_bytes(request)
        host = f"[{target.host}]" if ":" in target.host else target.host
        command = [
            *prefix,
            "wrk",
            *("--threads", "1", "--connections", str(connections)),
            *("--duration", f"{WARM_UP_SECONDS + duration}s"),
            *("--timeout", f"{TIMEOUT_SECONDS}s", "--script", str(SCRIPT), f"http://{host}:{target.port}/"),
            *("--", str(WARM_UP_SECONDS), *map(str, files)),
        ]
        try:
            done = subprocess.run(  # noqa: S603 - arguments of ours
                command,
                capture_output=True,
                text=True,
                check=False,
                timeout=WARM_UP_SECONDS + duration + GRACE_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            raise LctDeployError(f"wrk did not end within {error.timeout} s") from error
    if done.returncode != 0:
        raise LctDeployError(f"wrk failed: {(done.stderr or done.stdout).strip()}")
    return parse_wrk(done.stdout)


def parse_wrk(output: str) -> Figures:
    """The last line, which our script writes."""
    told: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    seconds = told["microseconds"] / 1e6
    answers = {int(status): count for status, count in told["answers"].items()}
    ok = answers.pop(OK, 0)
    errors = {str(status): count for status, count in sorted(answers.items())}
    refused, lost = told["connect"], told["read"] + told["write"]
    errors |= {NAMES[Outcome.REFUSED]: refused} if refused else {}
    errors |= {NAMES[Outcome.LOST]: lost} if lost else {}
    return Figures(
        requests=ok + sum(errors.values()),
        ok=ok,
        errors=errors,
        seconds=round(seconds, 3),
        throughput=round(ok / seconds, 3),
        latency=None,
        late_ms=None,
    )
