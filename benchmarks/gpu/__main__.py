"""`python -m benchmarks.gpu`: parity, latency and throughput of all that is installed, the bare kernel.

Installs nothing and ends within eight minutes. Every case that was planned is a row of
benchmarks/results/gpu_networks.csv or gpu_kernel.csv: measured, or with the reason why not.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.environment import gpu_environment
from benchmarks.gpu.plan import KERNEL, PREPARE, SECTIONS, TOTAL_SECONDS, Section, allowance
from benchmarks.gpu.records import beside_plain, completed, handed_over
from benchmarks.rows import RESULTS, write_rows

WORKER = ("-m", "benchmarks.gpu.worker")
GRACE = 3.0  # a section's process stops by itself; one that hangs is stopped after so many seconds more


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--seconds", type=float, default=TOTAL_SECONDS, help="for all sections together")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the directory of the result files")
    arguments = parser.parse_args()
    gpu = gpu_environment()
    if gpu is None:
        sys.exit("error: no NVIDIA GPU can be used here\nnvidia-smi shows the driver and its GPUs")
    arguments.output.mkdir(parents=True, exist_ok=True)
    print(f"{gpu['gpu']}, driver {gpu['driver']}: at most {arguments.seconds:.0f} s", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="lct-bench.") as directory:
        rows = run_all(Path(directory), arguments.seconds)
    rows["networks"] = beside_plain(rows["networks"])
    write_rows(arguments.output / "gpu_networks.csv", rows["networks"])
    write_rows(arguments.output / "gpu_kernel.csv", rows["kernel"])
    for line in summary(rows["networks"], rows["kernel"]):
        print(line)


def run_all(work: Path, total: float) -> dict[str, list[dict[str, Any]]]:
    """Rows of networks and kernel, section by section."""
    started = time.perf_counter()
    rows: dict[str, list[dict[str, Any]]] = {"networks": [], "kernel": []}
    unprepared = ""
    for index, section in enumerate(SECTIONS):
        seconds = allowance(SECTIONS, index, time.perf_counter() - started, total)
        needs = section.name not in (PREPARE, KERNEL)
        found, why = ([], unprepared) if needs and unprepared else _run(section, work, seconds)
        if section.name == PREPARE:
            unprepared = why and f"nothing to run: {why}"
            continue
        table = "kernel" if section.name == KERNEL else "networks"
        rows[table] += completed(section.name, found, why or "no time left")
    return rows


def _run(section: Section, work: Path, seconds: float) -> tuple[list[dict[str, Any]], str]:
    """What a section's process has handed over, and why it did not end by itself; "" where it did."""
    target = work / f"{section.name}.jsonl"
    if seconds <= 0:
        return [], "no time left"
    print(f"{section.name}: at most {seconds:.0f} s", file=sys.stderr)
    command = [
        sys.executable,
        *WORKER,
        section.name,
        str(work),
        str(seconds),
        str(target),
    ]
    errors = work / f"{section.name}.stderr"
    with errors.open("wb") as stream:
        try:
            code = subprocess.run(  # noqa: S603 - this program
                command, stderr=stream, stdout=stream, timeout=seconds + GRACE, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            return handed_over(target), f"no time left: stopped after {seconds:.0f} s"
    return handed_over(target), "" if code == 0 else _last_words(errors, code)


def _last_words(errors: Path, code: int) -> str:
    lines = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"crashed with {code}: {lines[-1] if lines else 'it says nothing'}"


def summary(networks: list[dict[str, Any]], kernel: list[dict[str, Any]]) -> list[str]:
    """A line a measured case, and how many of each kind were not."""
    lines = [
        f"{r['runtime']:<17} {r['attention']:<7} {r['precision']:<5} batch {r['batch']:>3}: "
        f"{r['images_per_second']:>9} images/s, host {r['host_median_ms']:.3f} ms, "
        f"max relative error {r['max_rel_error']:.1e}"
        + (f", {r['times_plain']:.3f} times the plain network" if r.get("times_plain") else "")
        for r in networks
        if r["status"] == "ok" and r["images_per_second"]
    ]
    lines += [
        f"kernel {r['form']:<6} stage {r['stage']} {r['dtype']} {r['layout']} batch {r['batch']:>3}: "
        f"{r['gigabytes_per_second']:>7} GB/s, {r['share_of_copy']:.0%} of a copy"
        for r in kernel
        if r["status"] == "ok"
    ]
    reasons: dict[str, int] = {}
    for r in (*networks, *kernel):
        if r["status"] != "ok":
            reasons[r["status"]] = reasons.get(r["status"], 0) + 1
    return lines + [f"{count} cases: {reason}" for reason, count in reasons.items()]


if __name__ == "__main__":
    main()
