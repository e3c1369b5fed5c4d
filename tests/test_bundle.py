"""Opening bundles: whole, damaged, and made to lead astray."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from lct_deploy.bundle import open_bundle
from lct_deploy.errors import BundleError
from tests.conftest import QuickCli

ROOT = Path(__file__).parent.parent


@pytest.fixture
def bundle(demo_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))


def edit(bundle: Path, **changes: Any) -> None:
    file = bundle / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_whole_bundle_opens_with_its_golden_logits(demo_bundle: Path) -> None:
    opened = open_bundle(demo_bundle)
    golden = opened.golden()
    assert opened.manifest.arch == "lct_resnet20"
    assert golden.images.shape == (16, 28, 28, 3)
    assert golden.logits.shape == (16, 10)


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz"])
def test_a_changed_byte_is_refused_with_the_command_that_rebuilds(bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(BundleError, match=rf"{name} has changed[\s\S]*lct-deploy export"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "manifest.json"])
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=name):
        open_bundle(bundle)


@pytest.mark.parametrize("path", ["../model.onnx", "/etc/passwd", "a/../../model.onnx", "", "C:\\model.onnx"])
def test_paths_that_leave_the_bundle_are_refused(bundle: Path, path: str) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    edit(bundle, golden={**manifest["golden"], "path": path})
    with pytest.raises(BundleError, match="not a path inside the bundle"):
        open_bundle(bundle)


def test_a_link_that_leaves_the_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    outside = (bundle / "model.onnx").rename(tmp_path / "elsewhere.onnx")
    (bundle / "model.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match="leads outside the bundle"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 2}, "schema version 2, this lct-deploy reads 1"),
        ({"labels": ["one"]}, "1 labels for 10 classes"),
        ({"num_classes": 0}, "num_classes"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_manifest_that_is_not_valid_is_explained(
    bundle: Path, changes: dict[str, Any], message: str
) -> None:
    edit(bundle, **changes)
    with pytest.raises(BundleError, match=message):
        open_bundle(bundle)


@pytest.mark.parametrize("text", ["", "not json", "[]", "null"])
def test_a_manifest_that_is_no_object_is_refused(bundle: Path, text: str) -> None:
    (bundle / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        open_bundle(bundle)


def test_an_unverified_artifact_is_not_handed_out(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    edit(bundle, artifacts=[{**manifest["artifacts"][0], "verified": False}])
    with pytest.raises(BundleError, match=r"not been verified[\s\S]*lct-deploy verify"):
        open_bundle(bundle).artifact("onnxruntime")


def test_a_runtime_that_the_bundle_has_nothing_for_is_named(demo_bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"no fp32 graph that torch can run[\s\S]*portable"):
        open_bundle(demo_bundle).artifact("torch")


def test_the_published_schema_is_current_and_describes_a_real_manifest(demo_bundle: Path) -> None:
    spec = importlib.util.spec_from_file_location("make_schema", ROOT / "docs" / "make_schema.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.SCHEMA.read_text() == module.schema_text(), "run `make docs`"
    jsonschema.validate(
        json.loads((demo_bundle / "manifest.json").read_text()), json.loads(module.schema_text())
    )


def test_inspect_prints_one_document(quick_cli: QuickCli, demo_bundle: Path) -> None:
    done = quick_cli("inspect", demo_bundle, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout) == json.loads((demo_bundle / "manifest.json").read_text())


def test_inspect_of_a_damaged_bundle_exits_1_without_a_traceback(quick_cli: QuickCli, bundle: Path) -> None:
    (bundle / "model.onnx").write_bytes(b"")
    done = quick_cli("inspect", bundle)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
