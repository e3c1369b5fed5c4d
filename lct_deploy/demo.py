"""The whole pipeline on the shipped checkpoint, through the commands that a user would type."""

import io
import json
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter
from rich.console import Console

from lct_deploy.errors import LctDeployError
from lct_deploy.manifest import Manifest, ParityReport
from lct_deploy.report import describe_certificate, describe_parity
from lct_deploy.sample import DEMO_CHECKPOINT, load_sample

IMAGE = 0  # which image of the sample is asked about
START_SECONDS = 60
STOP_SECONDS = 60
STEPS = 6


def run_demo(out: Console) -> None:
    """Export, verify, serve, classify, stop; raises LctDeployError at the first step that fails."""
    with tempfile.TemporaryDirectory(prefix="lct-deploy-demo-") as directory:
        bundle = Path(directory) / "demo"
        with _step(out, 1, f"export {DEMO_CHECKPOINT.name} to ONNX"):
            manifest = _export(bundle)
        out.print(describe_certificate(manifest.certificate), style="green")
        with _step(out, 2, "verify the bundle against PyTorch, on real images"):
            report = _verify(bundle)
        out.print(describe_parity(report), style="green")
        with _step(out, 3, "compare accuracy on the shipped sample"):
            _check_accuracy(report)
        with _step(out, 4, "serve it on a free port"):
            server, url = _start_server(bundle)
        try:
            sample = load_sample()
            with _step(out, 5, f"POST an image to {url}/v1/classify"):
                answer = _classify(url, sample.images[IMAGE])
            _show(out, sample.images[IMAGE], answer)
            _check_answer(answer, sample.classes[int(sample.labels[IMAGE])])
            with _step(out, 6, "stop the server"):
                _stop_server(server)
        finally:
            server.kill()
            server.wait()
    out.print("[bold green]all of it held[/]: exported, proven equal to PyTorch, served, asked, stopped")


@contextmanager
def _step(out: Console, number: int, title: str) -> Generator[None]:
    started = time.monotonic()
    # A recording would keep every frame of the spinner.
    with nullcontext() if out.record else out.status(f"{number}/{STEPS} {title} …"):
        yield
    out.print(f"[bold]{number}/{STEPS} {title}[/] [dim]({time.monotonic() - started:.1f} s)[/]")


def _lct_deploy(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "lct_deploy", *arguments]


def _run_json(*arguments: str) -> str:
    """What a command prints with --json; raises LctDeployError with its messages where it fails."""
    command = _lct_deploy(*arguments, "--json")
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own command
    _require(done.returncode == 0, f"lct-deploy {arguments[0]} failed:\n{done.stderr}")
    return done.stdout


def _export(bundle: Path) -> Manifest:
    return Manifest.model_validate_json(_run_json("export", str(DEMO_CHECKPOINT), "-o", str(bundle)))


def _verify(bundle: Path) -> ParityReport:
    output = _run_json("verify", str(bundle), "--checkpoint", str(DEMO_CHECKPOINT))
    (report,) = TypeAdapter(tuple[ParityReport, ...]).validate_json(output)
    return report


def _check_accuracy(report: ParityReport) -> None:
    accuracy = report.accuracy
    if accuracy is None:
        raise LctDeployError("the accuracy was not measured: the bundle's labels are not the sample's")
    same = accuracy.artifact_top1 == accuracy.reference_top1
    _require(same, f"accuracy is {accuracy.artifact_top1:.2f} %, PyTorch's {accuracy.reference_top1:.2f} %")


def _check_answer(answer: dict[str, Any], expected: str) -> None:
    best = answer["predictions"][0][0]["label"]
    _require(best == expected, f"the server says {best}, the image is {expected}")


def _start_server(bundle: Path) -> tuple[subprocess.Popen[str], str]:
    """The server's process and its URL, which it prints once it takes requests."""
    command = _lct_deploy("serve", str(bundle), "--port", "0", "--log-level", "warning")
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own command
    assert server.stdout is not None  # noqa: S101 - it is piped
    url = server.stdout.readline().strip()
    if not url:
        raise LctDeployError(f"the server did not start (exit code {server.wait(START_SECONDS)})")
    return server, url


def _classify(url: str, image: NDArray[np.uint8]) -> dict[str, Any]:
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, "PNG")
    headers = {"Content-Type": "image/png"}
    request = urllib.request.Request(f"{url}/v1/classify", encoded.getvalue(), headers)  # noqa: S310 - http to our own server
    with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
        return json.load(response)


def _stop_server(server: subprocess.Popen[str]) -> None:
    server.send_signal(signal.SIGTERM)
    code = server.wait(STOP_SECONDS)
    _require(code == 0, f"the server ended with exit code {code}")


def _show(out: Console, image: NDArray[np.uint8], answer: dict[str, Any]) -> None:
    """The top five as bars, beside the image where the terminal has colours to draw it."""
    bars = [
        f"{p['label']:<12} {p['probability']:7.2%} {'█' * round(30 * p['probability'])}"
        for p in answer["predictions"][0]
    ]
    if out.color_system is None:
        out.print("\n".join(f"  {bar}" for bar in bars))
    else:
        _draw(out, image, bars)
    stages = ", ".join(f"{stage} {ms:.1f} ms" for stage, ms in answer["timing_ms"].items())
    out.print(f"  {stages}", style="dim")


def _draw(out: Console, image: NDArray[np.uint8], bars: list[str]) -> None:
    """Half blocks show two pixels each: one in its own colour, one in the background's."""
    for line, (upper, lower) in enumerate(zip(image[::2], image[1::2], strict=True)):
        pairs = zip(upper, lower, strict=True)
        pixels = "".join(f"[rgb({a},{a},{a}) on rgb({b},{b},{b})]▀[/]" for a, b in pairs)
        rank, gap = divmod(line - 3, 2)
        out.print(f"  {pixels}   {bars[rank] if not gap and 0 <= rank < len(bars) else ''}")


def _require(held: bool, otherwise: str) -> None:
    if not held:
        raise LctDeployError(otherwise)
