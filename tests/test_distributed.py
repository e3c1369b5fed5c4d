"""Training in several processes that talk through gloo: one run, not two, in its numbers and in its ends."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lct_deploy.checkpoint import load_checkpoint
from lct_deploy.train.config import Execution
from tests.idx import write_idx_dataset
from tests.training import OPTIONS, log, run, same_weights

PROCESSES = 2


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    write_idx_dataset(path, classes=3, train=121, test=61, size=16)  # odd: the last parts differ in size
    return path


def start(*arguments: object) -> list["subprocess.Popen[str]"]:
    """`lct-deploy train` in two processes, their output in pipes."""
    return launch("-m", "lct_deploy", "train", *arguments)


def launch(*arguments: object) -> list["subprocess.Popen[str]"]:
    """Python in two processes with the variables that torchrun sets."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(PROCESSES), "LOCAL_WORLD_SIZE": str(PROCESSES), "OMP_NUM_THREADS": "1"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(PROCESSES)
    ]


def finish(processes: list["subprocess.Popen[str]"]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each."""
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, out, err) for p, (out, err) in zip(processes, outputs, strict=True)]


def torchrun(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", PROCESSES]
    return subprocess.run(
        [*map(str, command), "-m", "lct_deploy", "train", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes under torchrun."""
    output = tmp_path_factory.mktemp("two") / "model.safetensors"
    done = torchrun("--data", data, "-o", output, *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{output}: top-1 {float(log(output)[-1]['test_top1']):.2f} % after 3 epochs\n"
    assert "2 processes on CPU" in done.stderr
    assert done.stderr.count("epoch 1: loss") == 1
    return output


@pytest.fixture
def one_thread() -> Generator[None]:
    """As the processes under torchrun have: sums over other numbers of threads round otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_two_processes_learn_what_one_does_that_takes_batches_in_halves(
    data: Path, trained: Path, tmp_path: Path
) -> None:
    output = tmp_path / "model.safetensors"
    run(data, output, execution=Execution(accumulate=2))
    one, two = log(output), log(trained)
    assert [float(row["loss"]) for row in two] == pytest.approx([float(row["loss"]) for row in one], rel=1e-2)
    # The first epoch, before rounding has grown in a network that learns by leaps.
    assert float(two[0]["loss"]) == pytest.approx(float(one[0]["loss"]), rel=1e-4)


@pytest.mark.usefixtures("one_thread")
def test_a_step_of_two_processes_is_that_of_one(data: Path, tmp_path: Path) -> None:
    """Weights and running statistics, after one step over images that do not divide evenly."""
    options = ("--epochs", 1, "--batch-size", 121, "--lr", 0.05, "--momentum", 0.9)
    ends = finish(start("--data", data, "-o", tmp_path / "two.pt", *options))
    assert [code for code, _, _ in ends] == [0, 0], ends
    changes: dict[str, Any] = {"epochs": 1, "batch_size": 121, "schedule": "step"}
    one = run(data, tmp_path / "one.pt", execution=Execution(accumulate=2), **changes)
    a, b = (load_checkpoint(tmp_path / f"{name}.pt").model.state_dict() for name in ("one", "two"))
    for name, value in a.items():
        if value.is_floating_point():
            torch.testing.assert_close(b[name], value, rtol=1e-4, atol=1e-6, msg=name)
    row = log(tmp_path / "two.pt")[0]
    assert float(row["loss"]) == pytest.approx(one.loss, rel=1e-6)
    assert (float(row["test_top1"]), float(row["test_top5"])) == (one.test_top1, one.test_top5)


def test_only_the_first_process_writes_and_prints(trained: Path) -> None:
    assert sorted(path.name for path in trained.parent.iterdir()) == [
        "model.csv",
        "model.safetensors",
        "model.state.pt",
    ]


def test_a_killed_run_resumes_to_the_same_bits(data: Path, trained: Path, tmp_path: Path) -> None:
    """The second process is killed: the first says that it is alone, and nothing is lost."""
    output = tmp_path / "model.safetensors"
    processes = start("--data", data, "-o", output, *OPTIONS)
    assert processes[0].stderr is not None
    assert any(line.startswith("epoch 1:") for line in processes[0].stderr)
    processes[1].kill()
    (code, _, stderr), (killed, _, _) = finish(processes)
    assert killed == -signal.SIGKILL
    assert code == 1
    assert "error: another process of this run has ended or cannot be reached" in stderr
    assert "--resume" in stderr
    assert "Traceback" not in stderr
    assert not output.exists()
    ends = finish(start("--data", data, "-o", output, *OPTIONS, "--resume"))
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert "epoch 1:" not in ends[0][2]
    assert same_weights(output, trained)


def test_a_signal_ends_all_processes_between_two_steps(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "model.pt"
    processes = start("--data", data, "-o", output, *OPTIONS, "--epochs", 500, "--batch-size", 6)
    assert processes[0].stderr is not None
    assert any(line.startswith("epoch 1:") for line in processes[0].stderr)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    ends = finish(processes)
    assert [code for code, _, _ in ends] == [1, 1], ends
    told = ends[0][2] + ends[1][2]
    assert "Traceback" not in told
    assert "error: stopped" in told
    state = torch.load(tmp_path / "model.state.pt", weights_only=True)
    assert len(state["history"]) >= 1
    assert not output.exists()


_THREADS_LEFT = """
import atexit, os
atexit.register(lambda: print(len(os.listdir("/proc/self/task")), "thread"))
from lct_deploy.cli import main
main()
"""


def test_no_thread_of_the_group_is_left_when_python_ends(data: Path, tmp_path: Path) -> None:
    """One that frees a tensor then aborts the process, after all of the work is done."""
    options = ("--epochs", 1, "--batch-size", 121, "-o", tmp_path / "model.pt")
    ends = finish(launch("-c", _THREADS_LEFT, "train", "--data", data, *options))
    assert [(code, out.splitlines()[-1]) for code, out, _ in ends] == [(0, "1 thread")] * PROCESSES, ends


_CUT_OFF = """
import os, time, torch
from torch import distributed as dist
from lct_deploy.errors import LctDeployError
from lct_deploy.train.ranks import joined
with joined("cpu") as ranks:
    kept = [dist.group.WORLD]  # as a network's reducer keeps it
    ranks.wait()
    if ranks.rank == 1:
        dist.all_reduce(torch.zeros(1), async_op=True)
        raise LctDeployError("cut off")
    time.sleep(100)
"""


def test_a_process_cut_off_in_a_collective_ends() -> None:
    """The other one never comes to it, and its thread cannot be joined."""
    processes = launch("-c", _CUT_OFF)
    try:
        _, told = processes[1].communicate(timeout=60)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert (processes[1].returncode, told) == (1, "error: cut off\n")


def folders(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name, level in (("dark", 50), ("light", 200)):
            (root / split / name).mkdir(parents=True)
            for index in range(4):
                pixels = rng.normal(level, 20, (20, 20, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")
    return root


def test_what_one_process_cannot_read_ends_all_and_is_told_once(tmp_path: Path) -> None:
    """Of the test split, in order, the second half of each batch is the second process's."""
    data = folders(tmp_path / "data")
    broken = data / "val" / "light" / "3.png"
    broken.write_bytes(b"no image")
    options = ("--data", data, "-o", tmp_path / "model.pt", "--image-size", 16, "--workers", 0)
    options += ("--epochs", 1, "--batch-size", 8)
    ends = finish(start(*options))
    assert [code for code, _, _ in ends] == [2, 2]
    told = ends[0][2] + ends[1][2]
    assert told.count("error: ") == 1
    assert f"warning: left out: {broken}: not an image" in ends[0][2]
    assert "error: 1 images cannot be used, and 0 may be left out" in ends[0][2]
    assert not (tmp_path / "model.pt").exists()


def test_a_mistake_is_told_once(data: Path, tmp_path: Path) -> None:
    ends = finish(start("--data", data, "-o", tmp_path / "model.pt", "--recipe", "paper-resnet5"))
    assert [code for code, _, _ in ends] == [2, 2]
    assert re.fullmatch(r"error: unknown recipe 'paper-resnet5'; did you mean .*\n.*\n", ends[0][2])
    assert ends[1][2] == ""


def test_processes_without_torchruns_variables_are_refused(data: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lct_deploy", "train", "--data", str(data), "-o", str(tmp_path / "model.pt")],
        env={**os.environ, "WORLD_SIZE": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "error: WORLD_SIZE is 2, but RANK, LOCAL_RANK" in done.stderr
    assert "torchrun" in done.stderr
