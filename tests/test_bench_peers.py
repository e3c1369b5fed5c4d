"""Other ways to run a network, beside ours: the same answers, in the same rows."""

import sys
from pathlib import Path

import onnx
import pytest

from benchmarks.measure.messages import Kind, Subject
from benchmarks.measure.results import Row
from benchmarks.measure.rounds import Load, Plan
from benchmarks.measure.run import run
from benchmarks.peers import prepare as preparing
from benchmarks.peers.catalogue import VENVS, subjects
from benchmarks.peers.prepare import Prepared
from benchmarks.rows import read_rows, replace_rows
from lct_deploy.bundle import open_bundle
from lct_deploy.errors import LctDeployError
from lct_deploy.manifest import Precision
from lct_deploy.sample import DEMO_CHECKPOINT

PLAN = Plan(loads=(Load(batch=2, concurrency=1),), seconds=0.01, most=2)


def rows_of(*chosen: Subject) -> list[Row]:
    return run(chosen, PLAN, base=chosen[0])


@pytest.mark.parametrize("kind", ["onnxruntime", "torch eager"])
def test_others_answer_as_pytorch_does(demo_bundle: Path, kind: Kind) -> None:
    graph = demo_bundle / "model.onnx" if kind == "onnxruntime" else DEMO_CHECKPOINT
    ours = Subject(bundle=demo_bundle, threads=1)
    rows = rows_of(ours, Subject(kind=kind, bundle=demo_bundle, graph=graph, threads=1))
    assert [row.error for row in rows] == ["", ""]
    for row in rows:
        assert row.golden_top1 == 1
        assert row.golden_error is not None
        assert row.golden_error < 1e-3
    assert rows[1].runtime.startswith(kind)
    assert rows[1].graph == graph.name
    assert rows[1].ratio is not None
    assert rows[1].ratio.base == "demo, onnxruntime"


def test_half_precision_shows_in_the_error(demo_bundle: Path) -> None:
    in_torch = Subject(kind="torch eager", bundle=demo_bundle, graph=DEMO_CHECKPOINT, threads=1)
    exact, rounded = rows_of(in_torch, in_torch.model_copy(update={"precision": "bf16"}))
    assert exact.golden_error is not None
    assert rounded.golden_error is not None
    assert rounded.golden_error > 100 * exact.golden_error
    assert (exact.precision, rounded.precision) == ("fp32", "bf16")


def test_what_is_not_installed_is_a_row_with_the_command_that_mends_it(
    demo_bundle: Path, tmp_path: Path
) -> None:
    ours = Subject(bundle=demo_bundle, threads=1)
    absent = Subject(kind="openvino", bundle=demo_bundle, python=tmp_path / "python", threads=1)
    without_package = Subject(
        kind="openvino",
        bundle=demo_bundle,
        graph=demo_bundle / "model.onnx",
        python=python_without("openvino", tmp_path),
        threads=1,
    )
    rows = rows_of(ours, absent, without_package)
    assert rows[0].error == ""
    assert "python -m benchmarks.peers install" in rows[1].error
    assert "ModuleNotFoundError: No module named 'openvino'" in rows[2].error


def python_without(package: str, directory: Path) -> Path:
    """This interpreter, in which `package` cannot be imported."""
    (directory / f"{package}.py").write_text(f"raise ModuleNotFoundError(\"No module named '{package}'\")\n")
    python = directory / f"python-without-{package}"
    python.write_text(
        f'#!/bin/sh\nPYTHONPATH="{directory}:$PYTHONPATH" exec "{sys.executable}" "$@"\n', encoding="utf-8"
    )
    python.chmod(0o755)
    return python


def test_a_peer_without_a_graph_is_said(demo_bundle: Path) -> None:
    with pytest.raises(LctDeployError, match="torch eager needs a checkpoint"):
        rows_of(Subject(kind="torch eager", bundle=demo_bundle, threads=1))


def test_everything_is_prepared_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A small network stands for the large ones: its bundle, compiled, and graphs with nothing of ours."""
    monkeypatch.setattr(preparing, "ROOT", tmp_path)
    monkeypatch.setattr(preparing, "BATCHES", "2")
    prepared = preparing.prepare("lct_resnet20", "fp32", size=28)
    manifest = open_bundle(prepared.bundle("fp32")).manifest
    assert [artifact.kind for artifact in manifest.artifacts if artifact.runtime == "onnxruntime"]
    for graph in (prepared.plain_graph("fp32"), prepared.naive("fp32")):
        model = onnx.load(graph)
        assert not model.functions
        assert {node.domain for node in model.graph.node} == {""}
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    preparing.prepare("lct_resnet20", "fp32", size=28)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == times
    ours, in_openvino = (subject for subject in subjects(prepared, "fp32", 1) if subject.kind == "bundle")
    assert (ours.runtime, in_openvino.runtime) == ("onnxruntime", "openvino")
    row, other = rows_of(ours, in_openvino)
    assert (row.error, other.error) == ("", "")
    assert (row.runtime, other.runtime) == ("onnxruntime", "openvino")
    assert row.graph == "compiled"


@pytest.mark.parametrize(
    ("precision", "ours", "others"),
    [
        (
            "fp32",
            ["onnxruntime", "openvino"],
            ["onnxruntime", "openvino", "onnxruntime openvino", "torch eager", "torch compile"],
        ),
        ("int8", ["onnxruntime", "openvino"], ["onnxruntime", "openvino nncf", "onnxruntime openvino"]),
        ("bf16", ["openvino"], ["openvino", "torch eager", "torch compile"]),
    ],
)
def test_who_is_compared(precision: Precision, ours: list[str], others: list[str]) -> None:
    chosen = subjects(Prepared(arch="lct_resnet20", size=28), precision, 1)
    assert [subject.runtime for subject in chosen if subject.kind == "bundle"] == ours
    beside = chosen[len(ours) :]
    assert [subject.kind for subject in beside] == others
    assert {subject.precision for subject in beside} == {precision}
    assert [subject.kind for subject in beside if subject.calibration] == [k for k in others if "nncf" in k]


def test_a_network_measured_again_replaces_its_rows_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    for arch, rate in (("one", 1), ("two", 2), ("one", 3)):
        replace_rows(path, [{"arch": arch, "precision": "fp32", "rate": rate}], by=("arch", "precision"))
    replace_rows(path, [{"arch": "two", "precision": "int8", "rate": 4}], by=("arch", "precision"))
    rates = [(row["arch"], row["precision"], row["rate"]) for row in read_rows(path)]
    assert rates == [("two", "fp32", "2"), ("one", "fp32", "3"), ("two", "int8", "4")]


def test_environments_are_pinned() -> None:
    for venv in VENVS:
        lines = venv.requirements.read_text().split()
        assert all(line.count("==") == 1 for line in lines)
        ours = (Path(__file__).parent.parent / "constraints.txt").read_text().split()
        assert {line for line in lines if "openvino" not in line and "nncf" not in line} <= set(ours)
