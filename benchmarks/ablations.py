"""The paper's ablations (Tables 1 to 5) on Fashion-MNIST: `python -m benchmarks.ablations`.

ResNet-20 of 28 pixels with each attention, without one of LCT's operators, from other initial values and with
every number of groups: three seeds each, a few epochs. All runs have one recipe and differ by what the
setting says. A run is `lct-deploy train` in a process of its own, and two share the cores: the layers of so
small a network do not keep several threads busy.

A row is written to benchmarks/results/ablations.csv at the end of each run, with the machine it was made
on, and the run's log, a line an epoch, to the directory of that name beside it. Stop this at any time and
start it again: runs that have a row are not repeated, one that was cut off goes on where it was.
"""

import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from threading import Event
from typing import Annotated

import typer

from benchmarks.rows import RESULTS, append_row, read_rows
from benchmarks.serving.command import run_command
from lct_deploy.cores import available_cores
from lct_deploy.datasets import load_dataset
from lct_deploy.errors import LctDeployError
from lct_deploy.progress import stderr, track

SEEDS = (0, 1, 2)
# Mixed precision: 1.8 times as many images a second where a processor multiplies bfloat16 (AMX).
RECIPE = ("--batch-size=128", "--lr=0.1", "--schedule=cosine", "--precision=bf16")
EPOCHS = 3
JOBS = 2
WORK = Path("build/ablations")
CSV = RESULTS / "ablations.csv"
CHECKPOINT, LOG = "network.safetensors", "network.csv"
REFUSED = 2  # exit code of a command that was asked for what makes no sense


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a run does unlike the others; `table` says where the paper has its like.

    `paper` is its top-1 there, in percent; None where there is none, for the reason that `note` tells.
    """

    name: str
    table: str
    paper: float | None
    note: str = ""
    options: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run: top-1 of the last epoch in percent and that epoch's mean loss, or why there is none."""

    setting: str
    table: str
    seed: int
    epochs: int
    top1: float | None = None
    loss: float | None = None
    seconds: float | None = None
    error: str = ""
    command: str = ""


_LCT = "--arch=lct_resnet20"

# LCT as it is stands in all of the paper's tables. `paper` is of ResNet-50 on ImageNet, whose first stage has
# 256 channels where ours has 16: its like in Table 2 is the one whose smallest groups are as large.
SETTINGS = (
    Setting(name="LCT", table="1-5", paper=77.45, options=(_LCT,)),
    Setting(name="none", table="1", paper=76.15, options=("--arch=resnet20",)),
    Setting(name="SE", table="1, 4", paper=77.31, options=("--arch=se_resnet20",)),
    Setting(name="SE+", table="4", paper=77.37, options=("--arch=se_plus_resnet20",)),
    Setting(name="without normalisation", table="3", paper=76.89, options=(_LCT, "--no-normalize")),
    Setting(name="without transform", table="3", paper=76.82, options=(_LCT, "--no-transform")),
    Setting(name="w 0, b 0", table="5", paper=77.36, options=(_LCT, "--w-init=0", "--b-init=0")),
    Setting(name="w 1, b 0", table="5", paper=77.24, options=(_LCT, "--w-init=1", "--b-init=0")),
    Setting(name="G 1", table="2", paper=77.37, note="G 1", options=(_LCT, "--groups=1")),
    Setting(name="G 2", table="2", paper=77.32, note="G 32", options=(_LCT, "--groups=2")),
    Setting(name="G 8", table="2", paper=None, note="G 128: does not converge", options=(_LCT, "--groups=8")),
    Setting(name="G 16", table="2", paper=None, note="one channel a group", options=(_LCT, "--groups=16")),
)


def main(
    data: Annotated[str, typer.Option(help="As `lct-deploy train` takes it.")] = "fashion-mnist",
    epochs: Annotated[int, typer.Option(min=1)] = EPOCHS,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time, which share the cores.")] = JOBS,
    minutes: Annotated[float | None, typer.Option(help="Begin no run after so many.")] = None,
    work: Annotated[Path, typer.Option(help="Where checkpoints and states lie.")] = WORK,
    output: Annotated[Path, typer.Option(help="Rows that are there already are kept.")] = CSV,
) -> None:
    """Train what has not been trained yet."""
    load_dataset(data, "test")  # what is wrong with it is not the result of a run
    end = float("inf") if minutes is None else time.monotonic() + 60 * minutes
    left = list(_left(output, epochs))
    threads = max(1, available_cores() // jobs)
    over = Event()

    def train(setting: Setting, seed: int) -> Row | None:
        if over.is_set() or time.monotonic() >= end:
            return None
        try:
            return run(setting, seed, data=data, epochs=epochs, work=work, threads=threads)
        except LctDeployError:
            over.set()
            raise

    with ThreadPoolExecutor(jobs) as pool:
        try:
            runs = [pool.submit(train, setting, seed) for setting, seed in left]
            for ended in track(as_completed(runs), "runs", total=len(runs)):
                if row := ended.result():
                    append_row(output, asdict(row))
                    keep_log(row, work, output.with_suffix(""))
                    stderr.print(f"{row.setting}, seed {row.seed}: {row.error or f'{row.top1} %'}")
        finally:
            over.set()
    if time.monotonic() >= end:
        stderr.print("the time is over; start again to go on")


def _left(path: Path, epochs: int) -> Iterator[tuple[Setting, int]]:
    """A seed of all settings before the next: what is there when the driver is stopped can be compared."""
    rows = read_rows(path) if path.exists() else []
    if any(row["epochs"] != str(epochs) for row in rows):
        raise LctDeployError(
            f"{path}: holds runs of another length than {epochs} epochs", hint="choose another --output"
        )
    done = {(row["setting"], row["seed"]) for row in rows}
    for seed, setting in product(SEEDS, SETTINGS):
        if (setting.name, str(seed)) not in done:
            yield setting, seed


def run(setting: Setting, seed: int, *, data: str, epochs: int, work: Path, threads: int) -> Row:
    """Train, or go on with a run that was cut off. Raises LctDeployError where a signal ends it."""
    directory = run_directory(work, setting, seed, epochs)
    directory.mkdir(parents=True, exist_ok=True)
    checkpoint = directory / CHECKPOINT
    arguments = [
        "train", f"--data={data}", *setting.options, *RECIPE, f"--epochs={epochs}", f"--seed={seed}",
    ]  # fmt: skip
    resume = ["--resume"] if checkpoint.with_name("network.state.pt").exists() else []
    command = [sys.executable, "-m", "lct_deploy", *arguments, *resume, "-o", str(checkpoint)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(  # noqa: S603 - ours
        command, stderr=subprocess.PIPE, text=True, check=False, env=environment
    )
    row = Row(
        setting=setting.name,
        table=setting.table,
        seed=seed,
        epochs=epochs,
        command=shlex.join(["lct-deploy", *arguments, "-o", "network.safetensors"]),
    )
    stopped = "error: stopped" in done.stderr
    if done.returncode in (1, REFUSED) and not stopped:
        return replace(row, error=_reason(done.stderr))
    if done.returncode:
        raise LctDeployError(f"a run was stopped, code {done.returncode}: {_reason(done.stderr)}")
    last = _last_epoch(directory / LOG)
    return replace(
        row,
        top1=round(float(last["test_top1"]), 2),
        loss=round(float(last["loss"]), 4),
        seconds=round(float(last["seconds"]), 1),
    )


def keep_log(row: Row, work: Path, logs: Path) -> None:
    """Copy what the run of `row` has written at the end of each epoch, if it has come so far."""
    (setting,) = (setting for setting in SETTINGS if setting.name == row.setting)
    log = run_directory(work, setting, row.seed, row.epochs) / LOG
    if log.exists():
        logs.mkdir(exist_ok=True)
        shutil.copyfile(log, logs / f"{slug(setting)}-{row.seed}.csv")


def run_directory(work: Path, setting: Setting, seed: int, epochs: int) -> Path:
    return work / f"{slug(setting)}-{seed}-{epochs}-epochs"


def slug(setting: Setting) -> str:
    """What the run does unlike the others, as a directory's name."""
    return re.sub(r"\W+", "-", " ".join(setting.options)).removeprefix("-")


def _reason(text: str) -> str:
    """The error among what a command wrote to stderr, on one line."""
    return " ".join(text[max(text.rfind("error:"), 0) :].split())


def _last_epoch(path: Path) -> dict[str, str]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))[-1]


if __name__ == "__main__":
    run_command(main)
