"""The driver of the ablations: real training runs on a tiny data set, stopped and started again."""

import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from benchmarks import ablations
from benchmarks.ablations import SEEDS, SETTINGS, Setting
from benchmarks.rows import read_rows
from lct_deploy.checkpoint import load_checkpoint
from lct_deploy.errors import DataError, LctDeployError
from tests.idx import write_idx_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data") / "idx"
    write_idx_dataset(directory, classes=2, train=64, test=32)
    return directory


def rows_of(path: Path) -> Mapping[tuple[str, str], dict[str, str]]:
    return {(row["setting"], row["seed"]): row for row in read_rows(path)}


def few(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(ablations, "SETTINGS", tuple(s for s in SETTINGS if s.name in names))
    monkeypatch.setattr(ablations, "SEEDS", SEEDS[:1])


def test_every_run_has_its_row_and_is_not_done_twice(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few(monkeypatch, "LCT", "G 16")
    output = tmp_path / "ablations.csv"
    ablations.main(data=str(data), epochs=1, work=tmp_path / "work", output=output)
    rows = rows_of(output)
    assert set(rows) == {("LCT", "0"), ("G 16", "0")}
    assert 0 <= float(rows["LCT", "0"]["top1"]) <= 100
    assert float(rows["LCT", "0"]["loss"]) > 0
    assert "16 groups of 16 channels leave one channel a group" in rows["G 16", "0"]["error"]
    assert rows["G 16", "0"]["top1"] == ""
    (log,) = (tmp_path / "ablations").iterdir()
    (epoch,) = read_rows(log)
    assert (log.name, epoch["epoch"]) == ("arch-lct_resnet20-0.csv", "1")
    assert round(float(epoch["test_top1"]), 2) == float(rows["LCT", "0"]["top1"])
    first = output.read_bytes()
    ablations.main(data=str(data), epochs=1, work=tmp_path / "work", output=output)
    assert output.read_bytes() == first


def test_the_driver_goes_on_where_it_stopped_and_keeps_the_rows_of_before(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few(monkeypatch, "LCT", "none")
    output = tmp_path / "ablations.csv"
    with monkeypatch.context() as only_one:
        few(only_one, "none")
        ablations.main(data=str(data), epochs=1, work=tmp_path / "work", output=output)
    before = rows_of(output)["none", "0"]
    ablations.main(data=str(data), epochs=1, work=tmp_path / "work", output=output)
    assert set(rows_of(output)) == {("none", "0"), ("LCT", "0")}
    assert rows_of(output)["none", "0"] == before


def test_no_run_begins_once_the_time_is_over(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "ablations.csv"
    ablations.main(data=str(data), epochs=1, minutes=0, work=tmp_path, output=output)
    assert not output.exists()


def test_a_run_that_was_cut_off_goes_on(data: Path, tmp_path: Path) -> None:
    """The state that an earlier process has left is used: the log holds its epoch as it was."""
    setting = Setting(name="LCT", table="1", paper=None, options=("--arch=lct_resnet20",))
    directory = tmp_path / "arch-lct_resnet20-0-2-epochs"
    directory.mkdir()
    options = [*setting.options, *ablations.RECIPE, "--epochs=2", "--seed=0"]
    command = [sys.executable, "-c", _STOPPED, "train", f"--data={data}", *options]
    done = subprocess.run(
        [*command, "-o", str(directory / "network.safetensors")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3, done.stderr
    assert (directory / "network.state.pt").exists()
    assert not (directory / "network.safetensors").exists()
    row = ablations.run(setting, 0, data=str(data), epochs=2, work=tmp_path, threads=1)
    assert row.error == ""
    log = (directory / "network.csv").read_text().splitlines()
    assert len(log) == 3
    assert done.stderr.splitlines()[-1] in "\n".join(log)


# Ends as if it were killed once the first epoch has been saved, and says what the state holds of it.
_STOPPED = """
import os, sys
from lct_deploy import atomic
real = atomic.atomic_file
from contextlib import contextmanager
@contextmanager
def then_die(path, *rest, **named):
    with real(path, *rest, **named) as temporary:
        yield temporary
    if path.name.endswith(".state.pt"):
        import torch
        if history := torch.load(path, weights_only=True)["history"]:
            print(history[0]["loss"], file=sys.stderr)
            sys.stderr.flush()
            os._exit(3)
atomic.atomic_file = then_die
sys.argv[0] = "lct-deploy"
from lct_deploy.cli import main
main()
"""


def test_a_run_that_is_stopped_has_no_row(data: Path, tmp_path: Path) -> None:
    """Whoever stops it means the machine, not the setting: it goes on the next time."""
    output, work = tmp_path / "ablations.csv", tmp_path / "work"
    options = [f"--data={data}", "--epochs=1000", "--jobs=1", f"--work={work}", f"--output={output}"]
    command = [sys.executable, "-m", "benchmarks.ablations", *options]
    driver = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(600):
            if (work / "arch-lct_resnet20-0-1000-epochs" / "network.state.pt").is_file():
                break
            time.sleep(0.1)
        else:
            pytest.fail("no state was written within a minute")
        (run,) = psutil.Process(driver.pid).children()
        run.terminate()
        _, told = driver.communicate(timeout=60)
    finally:
        driver.kill()
    assert driver.returncode == 1
    assert "a run was stopped, code 1: error: stopped" in told
    assert [path.name for path in work.iterdir()] == ["arch-lct_resnet20-0-1000-epochs"]
    assert not output.exists()


def test_what_is_wrong_with_the_data_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        ablations.main(data=str(tmp_path / "missing"), work=tmp_path, output=tmp_path / "rows.csv")
    assert not (tmp_path / "rows.csv").exists()


def test_runs_of_another_length_are_not_mixed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few(monkeypatch, "none")
    output = tmp_path / "ablations.csv"
    ablations.main(data=str(data), epochs=1, work=tmp_path, output=output)
    with pytest.raises(LctDeployError, match="another length than 2 epochs"):
        ablations.main(data=str(data), epochs=2, work=tmp_path, output=output)


def test_no_two_settings_share_files(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few(monkeypatch, "SE", "SE+")
    ablations.main(data=str(data), epochs=1, work=tmp_path / "work", output=tmp_path / "ablations.csv")
    networks = [load_checkpoint(path).model for path in tmp_path.glob("work/*/network.safetensors")]
    assert {network.config.attention.kind for network in networks} == {"se", "se_plus"}
    assert len({ablations.slug(setting) for setting in SETTINGS}) == len(SETTINGS)


def test_every_table_of_the_paper_that_trains_classifiers_is_covered() -> None:
    tables = {table for setting in SETTINGS for table in setting.table.split(", ")}
    assert {"1", "3", "4", "5", "2"} <= tables
    assert len({setting.name for setting in SETTINGS}) == len(SETTINGS)
