"""`lct-deploy analyze`: what is counted of contexts and gates, from a checkpoint and from a bundle."""

import json
import math
import shutil
import tracemalloc
import xml.etree.ElementTree as ElementTree
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor, nn

from exporters.images import parity_images
from exporters.options import ExportOptions
from exporters.proof import verify_gates
from exporters.reference import prove
from exporters.verify import verify_bundle
from lct_deploy.analysis.base import Attention
from lct_deploy.analysis.graph import GraphGates
from lct_deploy.analysis.network import NetworkGates
from lct_deploy.analysis.statistics import Block, BlockCounter
from lct_deploy.analysis.summary import summarize
from lct_deploy.architecture import model_config
from lct_deploy.bundle import open_bundle
from lct_deploy.checkpoint import CheckpointMetadata, load_checkpoint, write_checkpoint
from lct_deploy.errors import BundleError, ExportError, ParityError, UsageError
from lct_deploy.intervals import mean_interval, spearman_interval
from lct_deploy.preprocessing import Preprocessing
from lct_deploy.runtime import RuntimeOptions
from lct_deploy.sample import DEMO_CHECKPOINT, load_sample
from tests.conftest import QuickCli, export, random_network
from tests.idx import write_idx
from tests.test_imports import HEAVY, run_without

LAYERS = tuple(f"layer{stage}.{block}.attn" for stage in (1, 2, 3) for block in range(3))
SMALL = Preprocessing(resize=28, crop=28)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 images of the shipped sample, in MNIST's format."""
    directory, sample = tmp_path_factory.mktemp("data"), load_sample()
    write_idx(directory / "t10k-images-idx3-ubyte", sample.images[:40])
    write_idx(directory / "t10k-labels-idx1-ubyte", sample.labels[:40].astype(np.uint8))
    return directory


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    return np.repeat(load_sample().images[:40, ..., None], 3, axis=3)


@pytest.fixture(scope="module")
def demo_gates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped checkpoint, exported with its gates."""
    path = tmp_path_factory.mktemp("bundles") / "demo"
    export(DEMO_CHECKPOINT, path, ExportOptions(gates=True))
    return path


@pytest.fixture(scope="module")
def se20(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SE network to stand beside the shipped one."""
    return checkpoint(tmp_path_factory.mktemp("checkpoints") / "se20.pt", "se_resnet20")


def checkpoint(path: Path, arch: str) -> Path:
    config = model_config(arch, num_classes=10)
    network = random_network(config, size=28)
    metadata = CheckpointMetadata(model=config, labels=tuple(map(str, range(10))), preprocessing=SMALL)
    write_checkpoint(path, network.state_dict(), metadata)
    return path


def counted(context: NDArray[np.float32], gate: NDArray[np.float32], *, batch: int) -> Block:
    counter = BlockCounter("layer1.0.attn")
    for start in range(0, len(gate), batch):
        part = slice(start, start + batch)
        counter.add(Attention(context=context[part], gate=gate[part]))
    return counter.block()


def ranks(values: NDArray[np.floating]) -> NDArray[np.intp]:
    return np.argsort(np.argsort(values))


# ---- what is counted -------------------------------------------------------------------------------


def test_a_block_is_what_its_definitions_say_in_whatever_batches_it_came() -> None:
    rng = np.random.default_rng(0)
    context = rng.normal(0, 1, (50, 12)).astype(np.float32)
    gate = rng.uniform(0, 1, (50, 12)).astype(np.float32)
    block = counted(context, gate, batch=7)
    z, g = context.astype(np.float64), gate.astype(np.float64)
    assert block.images == 50
    np.testing.assert_allclose(block.before, z.mean(axis=0))
    np.testing.assert_allclose(block.after, (z * g).mean(axis=0))
    np.testing.assert_allclose(block.delta, np.abs((z * g).mean(axis=0) - z.mean(axis=0)))
    np.testing.assert_allclose(block.attention, g.mean(axis=0))
    np.testing.assert_allclose(block.attention_sd, g.std(axis=0))
    np.testing.assert_array_equal(block.attention_min, g.min(axis=0))
    np.testing.assert_array_equal(block.attention_max, g.max(axis=0))
    assert (np.diff(block.before[block.order]) >= 0).all()
    channels = np.corrcoef(ranks(np.abs(z.mean(axis=0))), ranks(g.mean(axis=0)))[0, 1]
    assert block.of_channels.value == pytest.approx(channels)
    each = [np.corrcoef(ranks(np.abs(a)), ranks(b))[0, 1] for a, b in zip(z, g, strict=True)]
    assert block.of_images.value == pytest.approx(np.mean(each))
    assert block.of_images.interval is not None
    half = 1.959964 * np.std(each, ddof=1) / math.sqrt(50)
    assert block.of_images.interval == pytest.approx((np.mean(each) - half, np.mean(each) + half))
    whole = counted(context, gate, batch=50)
    np.testing.assert_allclose(whole.after, block.after)
    assert whole.of_images.value == pytest.approx(block.of_images.value)


def test_memory_does_not_grow_with_the_images() -> None:
    def peak(batches: int) -> int:
        rng, counter = np.random.default_rng(0), BlockCounter("layer1.0.attn")
        tracemalloc.start()
        for _ in range(batches):
            context, gate = rng.uniform(0, 1, (2, 8, 64)).astype(np.float32)
            counter.add(Attention(context=context, gate=gate))
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert counter.block().images == 8 * batches
        return highest

    peak(5)  # what numpy loads once
    assert peak(400) < 1.5 * peak(40)


def test_the_negative_correlation_of_the_paper_is_seen_where_it_is() -> None:
    rng = np.random.default_rng(0)
    channels = np.linspace(-2, 2, 64)
    context = (channels + rng.normal(0, 0.05, (20, 64))).astype(np.float32)
    gate = (0.6 - 0.1 * np.abs(context)).astype(np.float32)
    block = counted(context, gate, batch=8)
    assert block.of_channels.value == pytest.approx(-1, abs=0.01)
    assert block.of_images.value == pytest.approx(-1, abs=0.01)
    summary = summarize(block)
    assert summary.after.sd < summary.before.sd  # the contextual variation is reduced


def test_saturated_dead_and_constant_gates_are_told_apart() -> None:
    gate = np.full((10, 5), 0.5, np.float32)
    gate[:, 1] = np.linspace(0, 0.0019, 10)  # below half a step of 1/255 always, half of it below 0.001
    gate[:, 2] = np.linspace(0.9984, 1, 10)
    gate[:, 3] = np.linspace(0.3, 0.3 + 0.9 / 255, 10)  # moves by less than a step
    gate[:, 4] = np.linspace(0.3, 0.3 + 1.1 / 255, 10)
    context = np.random.default_rng(0).normal(0, 1, gate.shape).astype(np.float32)
    gates = summarize(counted(context, gate, batch=3)).gates
    assert (gates.shut, gates.open, gates.constant) == (1, 1, 4)
    assert gates.saturated_low == pytest.approx(100 * (gate < 1e-3).mean())
    assert gates.saturated_high == pytest.approx(100 * (gate > 1 - 1e-3).mean())
    assert 0 < gates.saturated_low < 20
    assert gates.min == 0
    assert gates.max == 1


def test_gates_that_are_all_equal_have_no_correlation() -> None:
    context = np.random.default_rng(0).normal(0, 1, (6, 8)).astype(np.float32)
    block = counted(context, np.full((6, 8), 0.73, np.float32), batch=4)  # w = 0: an untrained network
    assert block.of_channels.value is None
    assert (block.of_images.value, block.of_images.interval) == (None, None)
    assert block.constant_images == 6


def test_values_that_are_not_finite_are_an_error() -> None:
    context = np.ones((2, 4), np.float32)
    with pytest.raises(ParityError, match=r"layer1\.0\.attn: contexts or gates are NaN or infinite"):
        counted(context, np.full((2, 4), np.nan, np.float32), batch=2)


def test_intervals_on_numbers_worked_out_by_hand() -> None:
    # artanh 0.5 = 0.549306, half-width 1.959964 sqrt(1.125 / 100) = 0.207886
    expected = math.tanh(0.549306 - 0.207886), math.tanh(0.549306 + 0.207886)
    assert spearman_interval(0.5, 103) == pytest.approx(expected, abs=1e-6)
    assert spearman_interval(-1.0, 50) == (-1.0, -1.0)
    assert spearman_interval(0.5, 3) is None
    assert mean_interval(0.2, 0.25, 100) == pytest.approx((0.2 - 0.0979982, 0.2 + 0.0979982))
    assert mean_interval(0.2, 0.0, 1) is None


# ---- where it is read from -------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["lct_resnet20", "se_resnet20", "se_plus_resnet20"])
def test_the_context_behind_a_block_is_context_times_gate(
    tmp_path: Path, images: NDArray[np.uint8], arch: str
) -> None:
    loaded = load_checkpoint(checkpoint(tmp_path / "x.pt", arch))
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> object:
        def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            outputs[name] = output.mean(dim=(2, 3))

        return hook

    for name, module in loaded.model.attention_blocks().items():
        module.register_forward_hook(keep(name))  # pyright: ignore[reportArgumentType]
    with closing(NetworkGates(loaded, RuntimeOptions(threads=1))) as opened:
        found = opened.read(images[:8])
        assert tuple(opened.channels) == tuple(found) == LAYERS
        assert set(opened.channels.values()) == {16, 32, 64}
    for layer, attention in found.items():
        expected = outputs[layer].numpy()
        np.testing.assert_allclose(attention.context * attention.gate, expected, atol=1e-5)


@pytest.mark.parametrize("arch", ["se_resnet20", "se_plus_resnet20"])
def test_a_graph_gives_what_the_hooks_see(tmp_path: Path, images: NDArray[np.uint8], arch: str) -> None:
    source = checkpoint(tmp_path / "x.pt", arch)
    manifest = export(source, tmp_path / "bundle", ExportOptions(gates=True))
    assert manifest.parity[-1].artifact == "gates.onnx"
    _assert_equal(source, tmp_path / "bundle", images)


def test_the_shipped_networks_graph_gives_what_the_hooks_see(
    demo_gates: Path, images: NDArray[np.uint8]
) -> None:
    _assert_equal(DEMO_CHECKPOINT, demo_gates, images)


def _assert_equal(source: Path, bundle: Path, images: NDArray[np.uint8]) -> None:
    opened = open_bundle(bundle)
    artifact = opened.gates()
    assert artifact is not None
    options = RuntimeOptions(threads=1)
    with (
        closing(NetworkGates(load_checkpoint(source), options)) as network,
        closing(GraphGates(opened.file(artifact), options)) as graph,
    ):
        seen, given = network.read(images), graph.read(images)
        assert network.channels == graph.channels
        assert tuple(graph.channels) == LAYERS
    for layer in LAYERS:
        np.testing.assert_allclose(given[layer].context, seen[layer].context, atol=1e-5)
        np.testing.assert_allclose(given[layer].gate, seen[layer].gate, atol=1e-5)


# ---- the artifact ----------------------------------------------------------------------------------


def test_the_graph_of_the_gates_is_an_artifact_that_is_proven_and_never_served(demo_gates: Path) -> None:
    bundle = open_bundle(demo_gates)
    (artifact,) = [a for a in bundle.manifest.artifacts if a.kind == "gates"]
    assert (artifact.path, artifact.runtime, artifact.precision) == ("gates.onnx", "portable", "fp32")
    assert artifact.verified
    assert bundle.artifact("onnxruntime").path == bundle.artifact("portable").path == "model.onnx"
    assert bundle.compiled("onnxruntime") == []
    report = next(r for r in bundle.manifest.parity if r.artifact == "gates.onnx")
    assert report.passed
    assert [gate.layer for gate in report.gates] == list(LAYERS)
    assert all(gate.context_error is not None and gate.context_error < 1e-5 for gate in report.gates)
    assert all(gate.max_abs_error < 1e-5 for gate in report.gates)
    model = onnx.load(demo_gates / "gates.onnx")
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    reports = verify_bundle(bundle, DEMO_CHECKPOINT, None, "onnxruntime")
    assert [(r.artifact, r.passed) for r in reports] == [("model.onnx", True), ("gates.onnx", True)]


def test_a_context_that_is_off_fails_the_proof(demo_gates: Path, tmp_path: Path) -> None:
    """The gate of LCT does not see a context that is scaled: only the contexts themselves tell."""
    model = onnx.load(demo_gates / "gates.onnx")
    name = "layer2.1.attn.context"
    for node in model.graph.node:
        for values in (node.input, node.output):
            for index, value in enumerate(values):
                if value == name:
                    values[index] = "honest"
    model.graph.initializer.append(numpy_helper.from_array(np.array(1.001, np.float32), "wrong"))
    model.graph.node.append(helper.make_node("Mul", ["honest", "wrong"], [name]))
    onnx.save(model, tmp_path / "gates.onnx")
    manifest = open_bundle(demo_gates).manifest
    preprocessing = manifest.input.preprocessing
    network = load_checkpoint(DEMO_CHECKPOINT).model
    proof = prove(network, preprocessing, parity_images(preprocessing, None, manifest.labels))
    assert verify_gates(demo_gates / "gates.onnx", proof).failures == ()
    (failure,) = verify_gates(tmp_path / "gates.onnx", proof).failures
    assert failure.startswith("layer2.1.attn: the context is off by 1.0e-03 of its largest value")
    kept = [output for output in model.graph.output if not output.name.startswith("layer2.1")]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    onnx.save(model, tmp_path / "gates.onnx")
    assert verify_gates(tmp_path / "gates.onnx", proof).failures == ("layer2.1.attn: is not given",)


@pytest.mark.parametrize("own", [True, False])
def test_a_finished_onnx_file_gives_its_gates_too(
    demo_gates: Path, tmp_path: Path, images: NDArray[np.uint8], own: bool
) -> None:
    source = demo_gates / "model.onnx"
    if not own:
        inlined = onnx.inliner.inline_local_functions(onnx.load(source))
        source = tmp_path / "plain.onnx"
        onnx.save(inlined, source)
    export(source, tmp_path / "bundle", ExportOptions(gates=True))
    opened = open_bundle(tmp_path / "bundle")
    report = opened.manifest.parity[-1]
    assert len(report.gates) == 9
    assert all(gate.context_error is not None for gate in report.gates)
    with (
        closing(GraphGates(tmp_path / "bundle" / "gates.onnx", RuntimeOptions(threads=1))) as mine,
        closing(GraphGates(demo_gates / "gates.onnx", RuntimeOptions(threads=1))) as theirs,
    ):
        pairs = zip(mine.read(images).values(), theirs.read(images).values(), strict=True)
        for given, expected in pairs:
            np.testing.assert_allclose(given.context, expected.context, atol=1e-5)
            np.testing.assert_allclose(given.gate, expected.gate, atol=1e-5)


def test_gates_that_there_are_not_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no attention, and so no gates"):
        export(checkpoint(tmp_path / "x.pt", "resnet20"), tmp_path / "bundle", ExportOptions(gates=True))
    config = model_config("lct_resnet20", num_classes=10, normalize=False)
    metadata = CheckpointMetadata(model=config, labels=tuple(map(str, range(10))), preprocessing=SMALL)
    write_checkpoint(tmp_path / "y.pt", random_network(config, size=28).state_dict(), metadata)
    with pytest.raises(ExportError, match=r"layer1\.0\.attn is not fused"):
        export(tmp_path / "y.pt", tmp_path / "bundle", ExportOptions(gates=True, allow_unfused=True))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.pt", "y.pt"]


def test_a_damaged_graph_of_gates_is_refused(demo_gates: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(demo_gates, tmp_path / "bundle")
    with (bundle / "gates.onnx").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(BundleError, match=r"gates\.onnx has changed"):
        open_bundle(bundle)


# ---- the command -----------------------------------------------------------------------------------


def test_se_stands_beside_lct(
    quick_cli: QuickCli, demo_gates: Path, se20: Path, data: Path, tmp_path: Path
) -> None:
    done = quick_cli("analyze", demo_gates, se20, "--data", data, "-o", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == document
    assert [(m["name"], m["runtime"], m["images"]) for m in document["models"]] == [
        ("demo", "onnxruntime", 40),
        ("se20", "torch", 40),
    ]
    firsts = ["layer1.0.attn", "layer2.0.attn", "layer3.0.attn"]
    assert [model["drawn"] for model in document["models"]] == [firsts, firsts]
    assert [[b["layer"] for b in model["blocks"]] for model in document["models"]] == [list(LAYERS)] * 2
    with np.load(tmp_path / "out" / "arrays.npz", allow_pickle=False) as arrays:
        assert len(arrays.files) == 2 * 9 * 7
        block = document["models"][0]["blocks"][4]
        attention = arrays["demo/layer2.1.attn/attention"]
        assert attention.shape == (32,)
        assert attention.mean() == pytest.approx(block["gates"]["mean"])
        assert arrays["demo/layer2.1.attn/delta"].mean() == pytest.approx(block["delta"])
    names = {"context", "variation", "correlation"}
    files = {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert {p.name for p in (tmp_path / "out").iterdir()} == {*files, "arrays.npz", "summary.json"}
    for name in names:
        assert (tmp_path / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        ElementTree.parse(tmp_path / "out" / f"{name}.svg")  # noqa: S314 - our own file


def test_a_bundle_and_its_checkpoint_have_the_same_numbers(
    quick_cli: QuickCli, demo_gates: Path, data: Path, tmp_path: Path
) -> None:
    given = ("--data", data, "-o", tmp_path / "out", "--batch", 16, "--block", "layer2.1")
    assert quick_cli("analyze", demo_gates, DEMO_CHECKPOINT, *given).returncode == 0
    bundle, checkpoint = json.loads((tmp_path / "out" / "summary.json").read_text())["models"]
    assert bundle["drawn"] == checkpoint["drawn"] == ["layer2.1.attn"]
    for mine, theirs in zip(bundle["blocks"], checkpoint["blocks"], strict=True):
        assert mine["of_channels"]["value"] == pytest.approx(theirs["of_channels"]["value"], abs=1e-3)
        assert mine["gates"]["mean"] == pytest.approx(theirs["gates"]["mean"], abs=1e-5)
        assert mine["after"]["sd"] == pytest.approx(theirs["after"]["sd"], abs=1e-5)


def test_equal_data_give_equal_files_and_the_table_names_every_block(
    quick_cli: QuickCli, se20: Path, data: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        done = quick_cli("analyze", se20, "--data", data, "-o", tmp_path / name)
        assert done.returncode == 0, done.stderr
        assert [layer for layer in LAYERS if layer not in done.stdout] == []
        assert "se20 on torch: 40 images" in done.stdout
    for file in ("context.svg", "variation.svg", "correlation.svg", "context.png", "summary.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_networks_of_one_name_are_numbered(
    quick_cli: QuickCli, se20: Path, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = shutil.copy(se20, tmp_path / "other" / "se20.pt")
    done = quick_cli("analyze", se20, other, "--data", data, "-o", tmp_path / "out", "--json")
    assert [model["name"] for model in json.loads(done.stdout)["models"]] == ["se20-1", "se20-2"]


def test_what_cannot_be_analysed_says_why_and_writes_nothing(
    quick_cli: QuickCli, demo_bundle: Path, se20: Path, lct18: Path, data: Path, tmp_path: Path
) -> None:
    plain = checkpoint(tmp_path / "plain.pt", "resnet20")
    taken = tmp_path / "taken"
    taken.mkdir()
    out = tmp_path / "out"
    for arguments, output, code, message in (
        ([demo_bundle], out, 1, "--gates --overwrite"),
        ([plain], out, 2, "the network has no attention"),
        ([se20, "--block", "layer2.7"], out, 2, "no attention block 'layer2.7'; did you mean layer2."),
        ([se20], taken, 2, "already exists"),
        ([se20], tmp_path / "absent" / "out", 2, "parent directory does not exist"),
        ([tmp_path / "nothing"], out, 1, "no such bundle"),
        ([se20, "--batch", 0], out, 2, "batch"),
        ([se20, lct18], out, 2, "other numbers of stages"),
    ):
        done = quick_cli("analyze", *arguments, "--data", data, "-o", output)
        assert done.returncode == code, (arguments, done.stderr)
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plain.pt", "taken"]
    assert not any(taken.iterdir())


def test_a_bundle_is_analysed_without_torch(demo_gates: Path, data: Path, tmp_path: Path) -> None:
    arguments = ["lct-deploy", "analyze", str(demo_gates), "--data", str(data), "-o", str(tmp_path / "out")]
    code = f"import sys\nfrom lct_deploy.cli import main\nsys.argv = {arguments!r}\nmain()"
    done = run_without(HEAVY, code)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "context.svg").is_file()
    done = run_without(("matplotlib",), code)
    assert done.returncode == 1
    assert "pip install 'lct-deploy[plot]'" in done.stderr


def test_what_is_compiled_leaves_the_gates_in_their_place(
    quick_cli: QuickCli, demo_gates: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(demo_gates, tmp_path / "bundle")
    assert quick_cli("compile", bundle, "--runtime", "onnxruntime").returncode == 0
    opened = open_bundle(bundle)
    assert opened.gates() is not None
    assert [a.kind for a in opened.manifest.artifacts] == ["graph", "gates", "compiled"]


def test_the_network_is_as_it_was_after_its_hooks_are_gone(images: NDArray[np.uint8]) -> None:
    loaded = load_checkpoint(DEMO_CHECKPOINT)
    with closing(NetworkGates(loaded, RuntimeOptions(threads=1))) as opened:
        opened.read(images[:2])
    assert not any(module._forward_pre_hooks for module in loaded.model.modules())
    with torch.inference_mode():
        assert loaded.model(torch.zeros(1, 3, 28, 28)).shape == (1, 10)
