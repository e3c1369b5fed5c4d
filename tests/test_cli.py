"""The command line as a user meets it: answers on stdout, mistakes explained, exit codes kept."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from lct_deploy.architecture import model_config
from lct_deploy.sample import DEMO_CHECKPOINT, load_sample
from tests.conftest import Cli, QuickCli, random_network


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "boot.png"
    Image.fromarray(load_sample().images[0]).save(path)
    return path


@pytest.fixture(scope="module")
def plain18(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints") / "plain.pt"
    torch.save(random_network(model_config("resnet18", num_classes=4)).state_dict(), path)
    return path


def test_predict_prints_one_json_document(cli: Cli, demo_bundle: Path, image: Path) -> None:
    done = cli("predict", demo_bundle, image, image, "--top-k", 3, "--json")
    assert done.returncode == 0
    document = json.loads(done.stdout)
    assert set(document) == {"model", "runtime", "precision", "images"}
    assert (document["model"], document["runtime"], document["precision"]) == ("demo", "onnxruntime", "fp32")
    assert [entry["path"] for entry in document["images"]] == [str(image)] * 2
    assert document["images"][0]["predictions"][0]["label"] == "Ankle boot"
    assert len(document["images"][0]["predictions"]) == 3


def test_predict_in_words(quick_cli: QuickCli, demo_bundle: Path, image: Path) -> None:
    done = quick_cli("predict", demo_bundle, image)
    assert done.returncode == 0
    assert str(image) in done.stdout
    assert "Ankle boot" in done.stdout


def test_export_from_the_command_line(cli: Cli, quick_cli: QuickCli, tmp_path: Path) -> None:
    done = cli("export", DEMO_CHECKPOINT, "-o", tmp_path / "bundle", "--json")
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)
    assert manifest["commands"] == [f"lct-deploy export {DEMO_CHECKPOINT} -o {tmp_path}/bundle --json"]
    assert "fusion certificate: 9 of 9" in done.stderr
    assert "PASSED" in done.stderr
    again = quick_cli("export", DEMO_CHECKPOINT, "-o", tmp_path / "bundle")
    assert again.returncode == 2
    assert "already exists" in again.stderr
    assert "--overwrite" in again.stderr
    assert quick_cli("export", DEMO_CHECKPOINT, "-o", tmp_path / "bundle", "--overwrite").returncode == 0
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{plain}", "--arch", "lct_resnet50"], "contradicts the weights, which are those of resnet18"),
        (["{plain}", "--arch", "lct_resnet51"], "did you mean lct_resnet50?"),
        (["{plain}", "--num-classes", "7"], "--num-classes 7 contradicts the weights, which says 4"),
        (["{lct}", "--groups", "48"], "64 channels do not divide into 48 groups"),
        (["{lct}", "--groups", "64"], "leave one channel a group"),
        (["{lct}", "--groups", "0"], "groups"),
        (["{lct}", "--epsilon", "-1"], "epsilon"),
        (["{lct}", "--labels", "{labels}"], "3 labels, the network has 7 classes"),
        (["{lct}", "--labels", "{missing}"], "cannot be read"),
        (["{lct}", "--mean", "1,2"], "mean"),
        (["{lct}", "--mean", "a,b,c"], "three numbers"),
        (["{lct}", "--std", "0,1,1"], "std must be positive"),
        (["{lct}", "--image-size", "64", "--crop", "32"], "differ"),
        (["{lct}", "--image-size", "64", "--resize", "32"], "crop 64 is larger than resize 32"),
        (["{lct}", "--interpolation", "cubic"], "interpolation"),
        (["{lct}", "--stride-placement", "v2"], "stride_placement"),
        (["{lct}", "--opset", "9"], "opset 9 is not supported"),
        (["{lct}", "--name", "a b"], "cannot be a model's name"),
        (["{lct}", "--model-version", "a b"], "cannot be a version"),
        (["{lct}", "--weights", "ema"], "no EMA weights"),
        (["{lct}", "--images", "{missing}"], "no such directory"),
        (["{demo}", "--groups", "2"], "--groups 2 contradicts the checkpoint's metadata, which says 4"),
        (["{demo}", "--mean", "0.5,0.5,0.5"], "--mean"),
        (["{truncated}"], "damaged"),
        (["{missing}"], "no such file"),
        (["{labels}"], "not a checkpoint by its name"),
    ],
)
def test_what_cannot_be_exported_exits_2_and_writes_nothing(
    quick_cli: QuickCli, lct18: Path, plain18: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("a\nb\nc\n")
    truncated = tmp_path / "truncated.pt"
    truncated.write_bytes(lct18.read_bytes()[:100_000])
    places = {
        "lct": lct18,
        "plain": plain18,
        "demo": DEMO_CHECKPOINT,
        "labels": labels,
        "truncated": truncated,
        "missing": tmp_path / "missing.pt",
    }
    before = sorted(tmp_path.iterdir())
    done = quick_cli("export", *[str(a).format(**places) for a in arguments], "-o", tmp_path / "bundle")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert sorted(tmp_path.iterdir()) == before


def test_a_pickle_with_code_is_refused_and_not_run(cli: Cli, tmp_path: Path) -> None:
    proof = tmp_path / "executed"

    class Code:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (proof,)

    torch.save({"state_dict": Code()}, tmp_path / "evil.pt")
    done = cli("export", tmp_path / "evil.pt", "-o", tmp_path / "bundle")
    assert done.returncode == 2
    assert "refused, because reading it would run pickled code" in done.stderr
    assert not proof.exists()
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("output", ["/proc/bundle", "/dev/null/bundle", "nowhere/deep/bundle"])
def test_an_output_that_cannot_be_written_is_said_before_any_work(
    cli: Cli, tmp_path: Path, output: str
) -> None:
    done = cli("export", DEMO_CHECKPOINT, "-o", output, cwd=tmp_path)
    assert done.returncode == 2
    assert output in done.stderr
    assert "note:" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("content", [b"", b"not an image"])
def test_predict_names_the_file_that_is_no_image(
    quick_cli: QuickCli, demo_bundle: Path, image: Path, tmp_path: Path, content: bytes
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(content)
    done = quick_cli("predict", demo_bundle, image, bad, "--json")
    assert done.returncode == 2
    assert str(bad) in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["export"], ["predict", "b"], ["serve"], ["export", "--x"]]
)
def test_wrong_use_exits_2(quick_cli: QuickCli, arguments: list[str]) -> None:
    done = quick_cli(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_predict_on_a_bundle_that_is_none(quick_cli: QuickCli, tmp_path: Path, image: Path) -> None:
    done = quick_cli("predict", tmp_path, image)
    assert done.returncode == 1
    assert "not a bundle" in done.stderr


def test_every_command_explains_itself(quick_cli: QuickCli) -> None:
    overview = quick_cli("--help")
    assert overview.returncode == 0
    for command in (
        *("train", "export", "models", "compile", "verify"),
        *("predict", "evaluate", "analyze", "inspect", "serve", "bench", "demo"),
    ):
        assert command in overview.stdout
        assert quick_cli(command, "--help").returncode == 0


def test_a_copied_bundle_still_works(
    quick_cli: QuickCli, demo_bundle: Path, image: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(demo_bundle, tmp_path / "elsewhere")
    assert quick_cli("predict", moved, image).returncode == 0
