"""`lct-deploy compile --runtime onnxruntime`: what it adds to a bundle, who uses it, who refuses it."""

import hashlib
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from PIL import Image

import exporters.host.compile as compiling
from exporters.host.compile import CompileOptions, compile_for_host
from exporters.options import CalibrationOptions, ExportOptions
from lct_deploy.atomic import sha256_file
from lct_deploy.bundle import Bundle, open_bundle
from lct_deploy.errors import ParityError, UsageError
from lct_deploy.host import host_isa
from lct_deploy.kernels import cpu
from lct_deploy.manifest import Artifact, Manifest, Precision
from lct_deploy.runtime import Runtime, RuntimeOptions, open_artifact, open_bundled
from lct_deploy.sample import DEMO_CHECKPOINT, load_sample
from tests.conftest import Cli, QuickCli, export
from tests.serving import Server, classify, encoded, upload

ROOT = Path(__file__).parent.parent
LAYERS = [f"layer{stage}.{block}.attn" for stage in (1, 2, 3) for block in range(3)]
needs_library = pytest.mark.skipif(cpu.op_library() is None, reason="no op library")

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def compiled_once(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> Path:
    """The demo bundle compiled for batches of 1 and 3 from the command line."""
    path = Path(shutil.copytree(demo_bundle, tmp_path_factory.mktemp("compiled") / "demo"))
    done = cli("compile", path, "--runtime", "onnxruntime", "--batch", "1,3")
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture
def compiled(compiled_once: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(compiled_once, tmp_path / "bundles" / "demo"))


@pytest.fixture
def bundle(demo_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the demo bundle with nothing compiled."""
    return Path(shutil.copytree(demo_bundle, tmp_path / "bundles" / "demo"))


@pytest.fixture(scope="module")
def int8_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped checkpoint in int8, and that graph compiled for 1 and 3 images."""
    directory = tmp_path_factory.mktemp("int8")
    calibration = save_images(directory / "images", 64)
    options = ExportOptions(precision="int8", calibration=CalibrationOptions(data=str(calibration)))
    export(DEMO_CHECKPOINT, directory / "demo", options)
    compile_(directory / "demo", (1, 3))
    return directory / "demo"


def save_images(directory: Path, count: int) -> Path:
    """Mirrored images of the sample: of the same kind, and none that parity is measured on."""
    directory.mkdir()
    for index, image in enumerate(load_sample().images[:count]):
        Image.fromarray(image[:, ::-1]).save(directory / f"{index:03}.png")
    return directory


@pytest.fixture(scope="module")
def boot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "boot.png"
    path.write_bytes(encoded())
    return path


def compile_(
    bundle: Path, batches: tuple[int, ...], precision: Precision | None = None, images: Path | None = None
) -> Manifest:
    options = CompileOptions(batches=batches, precision=precision, images=images)
    return compile_for_host(
        open_bundle(bundle), options, command="lct-deploy compile", announce=lambda _: None
    )


def made_for(manifest: Manifest, precision: Precision = "fp32") -> dict[int, Artifact]:
    """Compiled artifacts by batch."""
    found = [a for a in manifest.artifacts if (a.kind, a.precision) == ("compiled", precision)]
    made = {artifact.profiles[0].opt: artifact for artifact in found}
    assert len(made) == len(found)
    return made


def files(bundle: Path) -> dict[str, str]:
    """Every file below `bundle` by its hash."""
    return {str(path.relative_to(bundle)): sha256_file(path) for path in bundle.rglob("*") if path.is_file()}


def assert_no_strays(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    listed = {*(a.path for a in manifest.artifacts), manifest.golden.path, "manifest.json"}
    assert set(files(bundle)) == listed
    assert {path.name for path in bundle.iterdir() if path.is_dir()} == {"compiled"}


def edit(bundle: Path, change: Edit) -> None:
    """Change the manifest's compiled artifacts."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    for artifact in manifest["artifacts"]:
        if artifact["kind"] == "compiled":
            change(artifact)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def shift(bundle: Path, batch: int, logit: int, by: float) -> None:
    """Add `by` to one logit of what is compiled for `batch`; all hashes are right."""
    path = bundle / made_for(open_bundle(bundle).manifest)[batch].path
    model = onnx.load(path)
    last = next(node for node in model.graph.node if "logits" in node.output)
    bias = next(t for t in model.graph.initializer if t.name == last.input[2])
    values = numpy_helper.to_array(bias).copy()
    values[logit] += by
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    onnx.save(model, path)

    def rehash(artifact: dict[str, Any]) -> None:
        artifact["sha256"] = sha256_file(bundle / artifact["path"])

    edit(bundle, rehash)


def opened(bundle: Bundle, precision: Precision | None = None) -> Runtime:
    return open_bundled(bundle, "onnxruntime", RuntimeOptions(threads=1), precision)


def inputs(count: int) -> np.ndarray:
    return np.stack(
        [np.asarray(Image.fromarray(image).convert("RGB")) for image in load_sample().images[:count]]
    )


def portable(bundle: Path, images: np.ndarray) -> np.ndarray:
    with closing(open_artifact("onnxruntime", bundle / "model.onnx", RuntimeOptions(threads=1))) as graph:
        return graph.infer(images)


# What is added


def test_artifacts_say_what_they_are_made_for_and_from(compiled_once: Path) -> None:
    manifest = open_bundle(compiled_once).manifest
    made = made_for(manifest)
    assert sorted(made) == [1, 3]
    for batch, artifact in made.items():
        (profile,) = artifact.profiles
        assert (profile.min, profile.opt, profile.max) == (batch, batch, batch)
        assert (artifact.runtime, artifact.precision, artifact.source) == (
            "onnxruntime",
            "fp32",
            "model.onnx",
        )
        assert artifact.host == host_isa()
        assert artifact.versions["onnxruntime"] == onnxruntime.__version__
        assert artifact.verified
        assert artifact.sha256 == hashlib.sha256((compiled_once / artifact.path).read_bytes()).hexdigest()
        assert artifact.attention is not None
        assert "9 blocks" in artifact.attention
    assert [a.path for a in manifest.artifacts if a.kind == "graph"] == ["model.onnx"]
    assert manifest.commands[-1] == f"lct-deploy compile {compiled_once} --runtime onnxruntime --batch 1,3"
    assert_no_strays(compiled_once)


@needs_library
def test_the_version_of_our_operators_is_kept_where_they_are_used(compiled_once: Path) -> None:
    for artifact in made_for(open_bundle(compiled_once).manifest).values():
        model = onnx.load(compiled_once / artifact.path)
        assert any(node.domain == cpu.DOMAIN for node in model.graph.node)
        assert artifact.versions["lct operators"] == str(cpu.VERSION)


def test_each_artifact_has_a_proof_against_the_bundles_graph(compiled_once: Path) -> None:
    manifest = open_bundle(compiled_once).manifest
    for artifact in made_for(manifest).values():
        (report,) = [r for r in manifest.parity if r.artifact == Path(artifact.path).name]
        assert report.passed
        assert report.reference == "model.onnx"
        assert report.images.real >= 256
        assert report.logits.max_abs_limit is not None
        assert report.logits.max_abs_error <= report.logits.max_abs_limit


def test_the_proof_covers_every_gate(compiled_once: Path) -> None:
    manifest = open_bundle(compiled_once).manifest
    for artifact in made_for(manifest).values():
        (report,) = [r for r in manifest.parity if r.artifact == Path(artifact.path).name]
        assert [gate.layer for gate in report.gates] == LAYERS
        assert max(gate.max_abs_error for gate in report.gates) < 1e-5
        assert not any(gate.nan or gate.constant for gate in report.gates)


def test_the_manifest_still_fits_its_schema(compiled_once: Path) -> None:
    schema = json.loads((ROOT / "docs" / "manifest.schema.json").read_text())
    jsonschema.validate(json.loads((compiled_once / "manifest.json").read_text()), schema)


def test_inspect_shows_what_is_compiled(quick_cli: QuickCli, compiled_once: Path) -> None:
    done = quick_cli("inspect", compiled_once)
    assert done.returncode == 0
    for artifact in made_for(open_bundle(compiled_once).manifest).values():
        assert artifact.path in done.stdout


def test_one_json_document(quick_cli: QuickCli, bundle: Path) -> None:
    done = quick_cli("compile", bundle, "--runtime", "onnxruntime", "--json")
    assert done.returncode == 0
    assert sorted(made_for(Manifest.model_validate_json(done.stdout))) == [1]
    assert json.loads(done.stdout) == json.loads((bundle / "manifest.json").read_text())
    assert "PASSED" in done.stderr


def test_compiling_again_replaces_and_other_batches_are_added(
    quick_cli: QuickCli, compiled: Path, boot: Path
) -> None:
    before = open_bundle(compiled).manifest
    for batches in ("3,1", "3", "2,2"):
        assert quick_cli("compile", compiled, "--runtime", "onnxruntime", "--batch", batches).returncode == 0
        assert_no_strays(compiled)
    manifest = open_bundle(compiled).manifest
    assert sorted(made_for(manifest)) == [1, 2, 3]
    names = [report.artifact for report in manifest.parity]
    assert len(names) == len(set(names)) == 4
    assert manifest.commands[: len(before.commands)] == before.commands
    assert len(manifest.commands) == len(before.commands) + 3
    assert quick_cli("predict", compiled, boot).returncode == 0


def test_the_users_own_images_are_taken_for_the_proof(bundle: Path, tmp_path: Path) -> None:
    manifest = compile_(bundle, (1,), images=save_images(tmp_path / "images", 256))
    assert manifest.parity[-1].images.real == 256
    assert manifest.parity[-1].images.synthetic == 0


# Who uses it


def test_the_batch_chooses_and_larger_ones_are_several_of_the_largest(compiled: Path) -> None:
    shift(compiled, 3, logit=4, by=100.0)
    with closing(opened(open_bundle(compiled))) as runtime:
        assert runtime.spec.compiled_batches == (1, 3)
        for count in (1, 2, 3, 4, 7):
            images = inputs(count)
            expected = portable(compiled, images)
            expected[: count // 3 * 3, 4] += 100
            np.testing.assert_allclose(runtime.infer(images), expected, atol=1e-3)


def test_images_that_do_not_fit_are_refused_whatever_the_batch(compiled_once: Path) -> None:
    with closing(opened(open_bundle(compiled_once))) as runtime:
        for count in (1, 2):
            with pytest.raises(UsageError, match="expected uint8 images"):
                runtime.infer(np.zeros((count, 5, 5, 3), np.uint8))
        with pytest.raises(UsageError):
            runtime.infer(np.zeros((0, 28, 28, 3), np.uint8))


def test_predict_runs_the_graph_for_one_image(quick_cli: QuickCli, compiled: Path, boot: Path) -> None:
    for label, by in (("Ankle boot", 0.0), ("Bag", 100.0)):
        shift(compiled, 1, logit=8, by=by)
        done = quick_cli("predict", compiled, boot, boot, "--json")
        assert done.returncode == 0
        document = json.loads(done.stdout)
        assert (document["runtime"], document["precision"]) == ("onnxruntime", "fp32")
        assert [image["predictions"][0]["label"] for image in document["images"]] == [label] * 2


_WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(("torch", "onnx", "onnxscript", "safetensors")))
sys.argv[0] = "lct-deploy"
from lct_deploy.cli import main
main()
"""


def test_predict_needs_neither_torch_nor_onnx(compiled_once: Path, boot: Path) -> None:
    command = [sys.executable, "-c", _WITHOUT, "predict", str(compiled_once), str(boot)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Ankle boot" in done.stdout


@pytest.fixture
def served(compiled: Path) -> Generator[tuple[Server, httpx.Client, Path]]:
    """A server of a bundle whose graph for one image is off by what its golden logits still allow."""
    shift(compiled, 1, logit=0, by=6e-4)
    server = Server(compiled)
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield server, client, compiled
    if server.process.poll() is None:
        server.stop()


def log_odds(predictions: list[dict[str, Any]]) -> float:
    """Of the first class against the last, from all ten probabilities."""
    by_index = {entry["index"]: entry["probability"] for entry in predictions}
    return float(np.log(by_index[0]) - np.log(by_index[9]))


def test_serving_uses_what_is_compiled_and_says_so_once(
    served: tuple[Server, httpx.Client, Path],
) -> None:
    server, http, bundle = served
    logits = portable(bundle, inputs(2))
    expected = (logits[:, 0] - logits[:, 9]).astype(np.float64)
    one = classify(http, encoded(), top_k=10).json()["predictions"]
    assert log_odds(one[0]) - expected[0] == pytest.approx(6e-4, abs=1e-4)
    both = upload(http, encoded(0), encoded(1)).json()["predictions"]
    assert [entry[0]["label"] for entry in both] == ["Ankle boot", "Pullover"]
    three = upload(http, encoded(0), b"no image", encoded(1), encoded(2)).json()["predictions"]
    assert [len(entry) for entry in three if "error" not in entry] == [5, 5, 5]
    code, messages = server.stop()
    assert code == 0
    assert messages.count("batches of 1, 3 run compiled, others split into them") == 1
    assert "serving demo version 1: fp32" in messages


def test_two_images_are_served_as_two_batches_of_one(
    served: tuple[Server, httpx.Client, Path],
) -> None:
    """Nothing was compiled for two, and the bundle's graph would be slower than two that were."""
    _, http, bundle = served
    logits = portable(bundle, inputs(3)).astype(np.float64)
    expected = logits[:, 0] - logits[:, 9]
    two = upload(http, encoded(0), encoded(1), top_k=10).json()["predictions"]
    for answer, odds in zip(two, expected, strict=False):
        assert log_odds(answer) - odds == pytest.approx(6e-4, abs=1e-4)
    three = upload(http, encoded(0), encoded(1), encoded(2), top_k=10).json()["predictions"]
    for answer, odds in zip(three, expected, strict=True):
        assert log_odds(answer) == pytest.approx(odds, abs=1e-4)


def test_without_compiled_graphs_the_log_says_nothing_of_them(demo_bundle: Path) -> None:
    _, messages = Server(demo_bundle).stop()
    assert "compiled" not in messages


@pytest.mark.parametrize("against", [(), ("--checkpoint", DEMO_CHECKPOINT)])
def test_verify_runs_what_is_compiled(
    quick_cli: QuickCli, compiled: Path, against: tuple[object, ...]
) -> None:
    done = quick_cli("verify", compiled, *against)
    assert done.returncode == 0, done.stderr
    for artifact in made_for(open_bundle(compiled).manifest).values():
        assert not against or Path(artifact.path).name in done.stdout
    shift(compiled, 3, logit=2, by=0.01)
    done = quick_cli("verify", compiled, *against)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert against or "batch 3" in done.stderr


def test_a_compiled_graph_that_answers_wrongly_here_is_not_served(
    quick_cli: QuickCli, compiled: Path
) -> None:
    shift(compiled, 3, logit=2, by=0.01)
    assert quick_cli("verify", compiled).returncode == 1
    done = quick_cli("serve", compiled, "--port", "0")
    assert done.returncode == 1
    assert "does not give PyTorch's answers on this machine" in done.stderr
    assert done.stdout == ""


# Who refuses it


def other_host(artifact: dict[str, Any]) -> None:
    artifact["host"] = "x86_64+avx"


def no_host(artifact: dict[str, Any]) -> None:
    artifact["host"] = None


def other_onnxruntime(artifact: dict[str, Any]) -> None:
    artifact["versions"]["onnxruntime"] = "1.0.0"


def other_operators(artifact: dict[str, Any]) -> None:
    artifact["versions"]["lct operators"] = "99"


def mended(quick_cli: QuickCli, stderr: str, bundle: Path) -> None:
    """The last line of the message is a command, and running it mends what was refused."""
    program, *arguments = shlex.split(stderr.strip().splitlines()[-1])
    assert (program, arguments[0]) == ("lct-deploy", "compile")
    done = quick_cli(*arguments)
    assert done.returncode == 0, done.stderr
    assert sorted(made_for(open_bundle(bundle).manifest)) == [1, 3]
    assert_no_strays(bundle)
    assert quick_cli("verify", bundle).returncode == 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (other_host, "x86_64+avx,"),
        (no_host, ""),
        (other_onnxruntime, "onnxruntime 1.0.0"),
        (other_operators, "lct operators 99"),
    ],
)
def test_another_machines_graph_is_refused_with_the_command_that_mends_it(
    quick_cli: QuickCli, compiled: Path, boot: Path, change: Edit, named: str
) -> None:
    edit(compiled, change)
    for command in (
        ("predict", compiled, boot),
        ("verify", compiled),
        ("verify", compiled, "--checkpoint", DEMO_CHECKPOINT),
        ("serve", compiled, "--port", "0"),
    ):
        done = quick_cli(*command)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert named in done.stderr
        assert done.stdout == ""
    mended(quick_cli, done.stderr, compiled)


def test_the_command_is_right_for_a_path_with_a_space(
    quick_cli: QuickCli, compiled: Path, boot: Path
) -> None:
    moved = compiled.rename(compiled.with_name("my demo"))
    edit(moved, other_host)
    done = quick_cli("predict", moved, boot)
    assert done.returncode == 1
    mended(quick_cli, done.stderr, moved)


@needs_library
def test_without_our_operators_the_form_of_standard_ones_takes_their_place(
    quick_cli: QuickCli, compiled: Path, boot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "_LIBRARY", tmp_path / "absent.so")
    assert cpu.op_library() is None
    done = quick_cli("predict", compiled, boot)
    assert done.returncode == 1
    assert "lct operators" in done.stderr
    mended(quick_cli, done.stderr, compiled)
    for artifact in made_for(open_bundle(compiled).manifest).values():
        assert set(artifact.versions) == {"onnxruntime"}
        assert not any(node.domain == "lct" for node in onnx.load(compiled / artifact.path).graph.node)
    monkeypatch.undo()
    with closing(opened(open_bundle(compiled))) as runtime:  # it serves where they are, too
        np.testing.assert_allclose(runtime.infer(inputs(1)), portable(compiled, inputs(1)), atol=1e-3)


def test_what_no_longer_fits_goes_with_the_first_compilation(compiled: Path) -> None:
    edit(compiled, other_onnxruntime)
    manifest = compile_(compiled, (2,))
    assert sorted(made_for(manifest)) == [2]
    assert len(manifest.parity) == 2
    assert_no_strays(compiled)


def test_a_changed_file_is_refused_with_a_command(quick_cli: QuickCli, compiled: Path, boot: Path) -> None:
    path = compiled / made_for(open_bundle(compiled).manifest)[3].path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    for command in (
        ("predict", compiled, boot),
        ("verify", compiled),
        ("serve", compiled),
        ("inspect", compiled),
    ):
        done = quick_cli(*command)
        assert done.returncode == 1
        assert f"{path.name} has changed" in done.stderr
        assert "lct-deploy " in done.stderr.splitlines()[-1]


def test_a_missing_file_is_named(quick_cli: QuickCli, compiled: Path, boot: Path) -> None:
    path = compiled / made_for(open_bundle(compiled).manifest)[1].path
    path.unlink()
    done = quick_cli("predict", compiled, boot)
    assert done.returncode == 1
    assert path.name in done.stderr


def test_an_unverified_one_is_refused(quick_cli: QuickCli, compiled: Path, boot: Path) -> None:
    edit(compiled, lambda artifact: artifact.update(verified=False))
    done = quick_cli("predict", compiled, boot)
    assert done.returncode == 1
    assert "not been verified" in done.stderr


# What cannot be compiled


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "0"], "'0' is not a list of batch sizes such as 1,8"),
        (["--batch", "-1"], "'-1' is not a list of batch sizes such as 1,8"),
        (["--batch", "1,129"], "129 cannot be compiled for; batches are 1 to 128"),
        (["--batch", "one"], "'one' is not a list of batch sizes such as 1,8"),
        (["--batch", "1.5"], "'1.5' is not"),
        (["--batch", "1:8"], "'1:8' is not"),
        (["--batch", "1,,8"], "is not"),
        (["--batch", ""], "is not"),
        (["--precision", "fp64"], "unknown precision 'fp64'"),
        (["--runtime", "openvino"], "openvino"),
        (["--images", "nowhere"], "no such directory"),
    ],
)
def test_wrong_use_exits_2_and_changes_nothing(
    quick_cli: QuickCli, compiled: Path, arguments: list[str], message: str
) -> None:
    before = files(compiled)
    done = quick_cli("compile", compiled, "--runtime", "onnxruntime", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert files(compiled) == before


def test_no_bundle(quick_cli: QuickCli, tmp_path: Path) -> None:
    done = quick_cli("compile", tmp_path / "nowhere", "--runtime", "onnxruntime")
    assert done.returncode == 1
    assert "no such bundle" in done.stderr


def test_a_precision_that_the_bundle_does_not_hold(quick_cli: QuickCli, bundle: Path) -> None:
    before = files(bundle)
    done = quick_cli("compile", bundle, "--runtime", "onnxruntime", "--precision", "int8")
    assert done.returncode == 1
    assert "holds no int8 graph" in done.stderr
    assert "fp32 for portable" in done.stderr
    assert files(bundle) == before


def test_half_precision_has_nothing_to_compile(quick_cli: QuickCli, tmp_path: Path, boot: Path) -> None:
    path = tmp_path / "half"
    export(DEMO_CHECKPOINT, path, ExportOptions(precision="fp16"))
    before = files(path)
    done = quick_cli("compile", path, "--runtime", "onnxruntime")
    assert done.returncode == 1
    assert "onnxruntime has no fp16 kernels on CPUs" in done.stderr
    assert files(path) == before
    assert [entry.name for entry in path.iterdir() if entry.is_dir()] == []
    assert sorted(made_for(compile_(path, (1,), "fp32"))) == [1]
    assert json.loads(quick_cli("predict", path, boot, "--json").stdout)["precision"] == "fp16"
    with closing(opened(open_bundle(path))) as runtime:
        assert runtime.spec.compiled_batches == ()
    with closing(opened(open_bundle(path), "fp32")) as runtime:
        assert runtime.spec.compiled_batches == (1,)


# Failures on the way


def test_a_graph_that_disagrees_leaves_the_bundle_as_it_was(
    quick_cli: QuickCli, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, calls = compiling.verify_artifact, iter(range(9))

    def second_fails(*args: Any, **kwargs: Any) -> Any:
        report = honest(*args, **kwargs)
        return report.model_copy(update={"failures": ("planted",)}) if next(calls) == 1 else report

    monkeypatch.setattr(compiling, "verify_artifact", second_fails)
    before = files(compiled)
    done = quick_cli("compile", compiled, "--runtime", "onnxruntime", "--batch", "1,2,3")
    assert done.returncode == 1
    assert "does not agree with model.onnx" in done.stderr
    assert "planted" in done.stderr
    assert files(compiled) == before
    assert_no_strays(compiled)


@pytest.mark.parametrize(
    "step", ["host.compile.lay_out", "host.compile.verify_artifact", "compiled.write_manifest"]
)
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interruption_leaves_the_bundle_as_it_was(
    bundle: Path, step: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    before = files(bundle)
    monkeypatch.setattr(f"exporters.{step}", fail)
    with pytest.raises(type(error)):
        compile_(bundle, (1,))
    monkeypatch.undo()
    assert files(bundle) == before
    compile_(bundle, (1,))
    assert_no_strays(bundle)


def test_a_bundle_whose_graph_is_not_pytorchs_is_not_compiled_to_look_as_if_it_were(compiled: Path) -> None:
    """The compiled graphs are compared with the bundle's own graph: one of another network fails."""
    path = compiled / "model.onnx"
    model = onnx.load(path)
    bias = next(t for t in model.graph.initializer if t.name.endswith("fc.bias"))
    values = numpy_helper.to_array(bias).copy()
    values[0] += 1
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    onnx.save(model, path)
    manifest = json.loads((compiled / "manifest.json").read_text())
    manifest["artifacts"][0]["sha256"] = sha256_file(path)
    (compiled / "manifest.json").write_text(json.dumps(manifest))
    from lct_deploy.golden import check_golden

    with closing(opened(open_bundle(compiled))) as runtime, pytest.raises(ParityError, match="batch 2"):
        check_golden(open_bundle(compiled), runtime)


# int8


@pytest.fixture
def int8(int8_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(int8_once, tmp_path / "bundles" / "demo"))


def test_an_int8_bundle_is_compiled_from_its_int8_graph(int8_once: Path) -> None:
    manifest = open_bundle(int8_once).manifest
    made = made_for(manifest, "int8")
    assert sorted(made) == [1, 3]
    for artifact in made.values():
        assert artifact.source == "int8-onnxruntime.onnx"
        (report,) = [r for r in manifest.parity if r.artifact == Path(artifact.path).name]
        assert report.passed
        assert report.precision == "int8"
        assert [gate.layer for gate in report.gates] == LAYERS
        assert report.logits.top1_agreement >= 0.98
    assert_no_strays(int8_once)


def test_an_int8_bundle_is_verified_and_predicts_on_what_is_compiled(
    quick_cli: QuickCli, int8_once: Path, boot: Path
) -> None:
    assert quick_cli("verify", int8_once).returncode == 0
    assert quick_cli("verify", int8_once, "--checkpoint", DEMO_CHECKPOINT).returncode == 0
    document = json.loads(quick_cli("predict", int8_once, boot, "--json").stdout)
    assert document["precision"] == "int8"
    assert document["images"][0]["predictions"][0]["label"] == "Ankle boot"
    bundle = open_bundle(int8_once)
    (graph,) = [a for a in bundle.manifest.artifacts if (a.kind, a.precision) == ("graph", "int8")]
    with (
        closing(opened(bundle)) as runtime,
        closing(open_artifact("onnxruntime", bundle.file(graph), RuntimeOptions())) as unlaid,
    ):
        assert runtime.spec.compiled_batches == (1, 3)
        for count in (1, 2, 3):
            difference = np.abs(runtime.infer(inputs(count)) - unlaid.infer(inputs(count))).max()
            assert (difference == 0) if count == 2 else (difference < 0.5)


def test_precisions_are_compiled_beside_each_other(int8: Path) -> None:
    before = made_for(open_bundle(int8).manifest, "int8")
    manifest = compile_(int8, (1,), "fp32")
    assert made_for(manifest, "int8") == before
    assert sorted(made_for(manifest, "fp32")) == [1]
    with closing(opened(open_bundle(int8), "fp32")) as runtime:
        assert runtime.spec.compiled_batches == (1,)
    with closing(opened(open_bundle(int8))) as runtime:
        assert runtime.spec.compiled_batches == (1, 3)
    assert_no_strays(int8)


@needs_library
def test_an_int8_bundle_without_our_operators(
    quick_cli: QuickCli, int8: Path, boot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "_LIBRARY", tmp_path / "absent.so")
    done = quick_cli("predict", int8, boot)
    assert done.returncode == 1
    program, *arguments = shlex.split(done.stderr.strip().splitlines()[-1])
    assert program == "lct-deploy"
    done = quick_cli(*arguments)
    assert done.returncode == 0, done.stderr
    assert quick_cli("verify", int8).returncode == 0
