"""`lct-deploy evaluate`: what is counted, over which images and classes, and what is refused."""

import csv
import json
import math
import re
import shutil
import tracemalloc
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image

from lct_deploy.bundle import open_bundle
from lct_deploy.datasets import ArrayImages, FolderImages, load_evaluation_data
from lct_deploy.errors import DataError, ParityError
from lct_deploy.evaluation.answers import Answers, read_answers
from lct_deploy.evaluation.classes import match_classes
from lct_deploy.evaluation.images import LabelledReader
from lct_deploy.evaluation.scores import CALIBRATION_BINS, Scores
from lct_deploy.intervals import wilson_interval
from lct_deploy.manifest import Precision
from lct_deploy.predictions import top_classes
from lct_deploy.preprocessing import Preprocessing
from lct_deploy.runtime import RuntimeOptions, RuntimeSpec, open_artifact
from lct_deploy.runtime.base import Stages
from lct_deploy.sample import DEMO_CHECKPOINT, load_sample
from tests.conftest import QuickCli
from tests.idx import write_idx
from tests.test_imports import HEAVY, run_without

SMALL = Preprocessing(resize=8, crop=8)
FOLDER_NAMES = tuple(name.replace("/", " or ") for name in load_sample().classes)  # one has a slash


@pytest.fixture(scope="module")
def idx_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped sample as a test split in MNIST's format."""
    directory, sample = tmp_path_factory.mktemp("idx"), load_sample()
    write_idx(directory / "t10k-images-idx3-ubyte", sample.images)
    write_idx(directory / "t10k-labels-idx1-ubyte", sample.labels.astype(np.uint8))
    return directory


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 100 images of the shipped sample, a folder a class: in another order than the network's."""
    directory, sample = tmp_path_factory.mktemp("folders"), load_sample()
    for index, (image, label) in enumerate(zip(sample.images[:100], sample.labels[:100], strict=True)):
        folder = directory / FOLDER_NAMES[label]
        folder.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"{index}.png")
    return directory


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.txt"
    path.write_text("\n".join(FOLDER_NAMES))
    return path


class Dictated:
    """A runtime whose logits are given, in the order of the images: their first pixel is their number."""

    def __init__(self, logits: NDArray[np.float32]) -> None:
        self.logits = logits
        self.batches: list[int] = []

    @property
    def spec(self) -> RuntimeSpec:
        precision: Precision = "fp16"
        return RuntimeSpec(
            runtime="dictated",
            precision=precision,
            height=8,
            width=8,
            num_classes=self.logits.shape[1],
            device="none",
            versions={},
        )

    def infer(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.batches.append(len(images))
        return self.logits[images[:, 0, 0, 0]]

    def profile(self, images: NDArray[np.uint8]) -> Stages:
        self.infer(images)
        return Stages()

    def close(self) -> None:
        pass


def numbered(labels: list[int], classes: int) -> ArrayImages:
    """Images whose pixels are their number."""
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None] * np.ones((1, 8, 8), np.uint8)
    names = tuple(f"class {i}" for i in range(classes))
    return ArrayImages(images=images, labels=np.array(labels, np.int64), classes=names)


def answers(logits: NDArray[np.float32], labels: list[int], *, batch: int = 3) -> list[Answers]:
    data = numbered(labels, logits.shape[1])
    reader = LabelledReader(data, SMALL, batch=batch)
    return list(read_answers(Dictated(logits), reader, np.arange(logits.shape[1]), description="test"))


# ---- what is counted -------------------------------------------------------------------------------


def test_scores_on_numbers_worked_out_by_hand() -> None:
    # Probabilities of the first class: 0.5, 0.9, 0.9, 0.2.
    logits = np.log([[0.5, 0.5], [0.9, 0.1], [0.9, 0.1], [0.2, 0.8]]).astype(np.float32)
    logits[0] = 0  # equal: the lower class is the prediction
    scores = Scores(2)
    for found in answers(logits, [0, 0, 1, 1]):
        scores.add(found)
    score = scores.score(("a", "b"))
    assert (score.images, score.top1, score.top5) == (4, 75.0, None)
    assert [(c.label, c.images, c.predicted, c.top1) for c in score.classes] == [
        ("a", 2, 3, 100.0),
        ("b", 2, 1, 50.0),
    ]
    assert [(c.label, c.prediction, c.images) for c in score.confusion] == [(0, 0, 2), (1, 0, 1), (1, 1, 1)]
    # Gaps: 0.5 right at 0.5; two at 0.9, one right; one right at 0.8.
    assert score.calibration.ece == pytest.approx(100 * (0.5 + abs(1 - 1.8) + 0.2) / 4, abs=1e-4)
    filled = [b for b in score.calibration.bins if b.images]
    assert [(b.images, b.accuracy) for b in filled] == [(1, 100.0), (1, 100.0), (2, 50.0)]
    assert all(b.lower < (b.confidence or 0) <= b.upper for b in filled)


def test_classes_without_images_have_no_accuracy() -> None:
    scores = Scores(3)
    for found in answers(np.eye(3, dtype=np.float32), [0, 1, 1]):
        scores.add(found)
    assert [c.top1 for c in scores.score(("a", "b", "c")).classes] == [100.0, 50.0, None]


def test_ranks_are_those_of_predict_also_where_logits_are_equal() -> None:
    rng = np.random.default_rng(0)
    logits = rng.integers(0, 4, (100, 12)).astype(np.float32)
    truth = rng.integers(0, 12, 100).tolist()
    names = tuple(map(str, range(12)))
    expected = [
        [best["index"] for best in row].index(label)
        for row, label in zip(top_classes(logits, names, 12), truth, strict=True)
    ]
    found = answers(logits, truth, batch=7)
    assert np.concatenate([a.ranks for a in found]).tolist() == expected
    scores = Scores(12)
    for batch in found:
        scores.add(batch)
    score = scores.score(names)
    assert score.top1 == 100 * np.mean(np.array(expected) == 0)
    assert score.top5 == 100 * np.mean(np.array(expected) < 5)


def test_calibration_equals_its_definition() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 3, (200, 6)).astype(np.float32)
    truth = rng.integers(0, 6, 200)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    expected = 0.0
    for low in range(CALIBRATION_BINS):
        chosen = (confidence > low / CALIBRATION_BINS) & (confidence <= (low + 1) / CALIBRATION_BINS)
        if chosen.any():
            expected += chosen.mean() * abs(right[chosen].mean() - confidence[chosen].mean())
    scores = Scores(6)
    for found in answers(logits, truth.tolist(), batch=64):
        scores.add(found)
    assert scores.score(tuple("abcdef")).calibration.ece == pytest.approx(100 * expected, abs=1e-4)


@pytest.mark.parametrize(
    ("right", "images", "low", "high"),
    [(0, 10, 0.0, 0.27753), (10, 10, 0.72247, 1.0), (90, 100, 0.82563, 0.94478)],  # from published tables
)
def test_wilson_interval(right: int, images: int, low: float, high: float) -> None:
    assert wilson_interval(right, images) == pytest.approx((low, high), abs=1e-5)


def test_logits_that_are_not_finite_are_an_error_that_names_the_image() -> None:
    logits = np.zeros((5, 2), np.float32)
    logits[3, 1] = np.nan
    with pytest.raises(ParityError, match="3: its logits are NaN or infinite on dictated, fp16"):
        answers(logits, [0] * 5)


def test_every_batch_has_the_size_asked_for() -> None:
    runtime = Dictated(np.eye(4, dtype=np.float32))
    reader = LabelledReader(numbered([0, 1, 2, 3, 0, 1, 2][:4], 4), SMALL, batch=3)
    found = list(read_answers(runtime, reader, np.arange(4), description="test"))
    assert runtime.batches == [3, 3]
    assert [len(a.labels) for a in found] == [3, 1]
    assert np.concatenate([a.indices for a in found]).tolist() == [0, 1, 2, 3]


# ---- which classes ---------------------------------------------------------------------------------


def folder_images(*classes: str) -> FolderImages:
    return FolderImages(paths=(Path("x"),), labels=np.zeros(1, np.int64), classes=classes)


def test_classes_are_matched_by_name() -> None:
    assert match_classes(folder_images("b", "a"), ("a", "x", "b")).tolist() == [2, 0]


def test_a_class_that_the_network_lacks_is_named_with_the_closest() -> None:
    with pytest.raises(DataError, match="2 of the 3 classes of the data") as caught:
        match_classes(folder_images("cat", "dogs", "zebra"), ("cat", "dog"))
    assert "'dogs'; did you mean dog?" in str(caught.value)
    assert "'zebra'" in str(caught.value)
    assert "--labels FILE" in str(caught.value)


def test_a_label_that_the_network_has_twice_is_no_match() -> None:
    labels = ("crane", "crane", "heron")  # as ImageNet's
    assert match_classes(folder_images("heron"), labels).tolist() == [2]
    with pytest.raises(DataError, match="2 classes called 'crane'"):
        match_classes(folder_images("crane", "heron"), labels)


def test_numbers_of_idx_files_are_the_networks_own(idx_data: Path) -> None:
    data = load_evaluation_data(str(idx_data))
    assert isinstance(data, ArrayImages)
    assert not data.named
    assert match_classes(data, load_sample().classes).tolist() == list(range(10))
    with pytest.raises(DataError, match="class 9, the network has 3 classes"):
        match_classes(data, ("a", "b", "c"))


def test_data_may_be_a_tree_with_splits_or_the_folders_of_classes(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders, tmp_path / "tree" / "val")
    whole, split = load_evaluation_data(str(folders)), load_evaluation_data(str(tmp_path / "tree"))
    assert whole.classes == split.classes == tuple(sorted(FOLDER_NAMES))
    assert len(whole) == len(split) == 100
    (tmp_path / "trained" / "train" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match="no folder for the test split"):
        load_evaluation_data(str(tmp_path / "trained"))
    with pytest.raises(DataError, match="no such directory"):
        load_evaluation_data(str(tmp_path / "absent"))


# ---- which images ----------------------------------------------------------------------------------


@pytest.fixture
def damaged(folders: Path, tmp_path: Path) -> Path:
    """`folders` with two files that are no images, one of them alone in its batch of 4."""
    data = tmp_path / "damaged"
    shutil.copytree(folders, data)
    (data / FOLDER_NAMES[4] / "a.jpg").write_bytes(b"not an image")
    (data / FOLDER_NAMES[9] / "z.png").write_bytes(b"")
    return data


def test_unreadable_images_are_counted_and_left_out(damaged: Path) -> None:
    reader = LabelledReader(load_evaluation_data(str(damaged)), SMALL, batch=4, max_unreadable=2)
    batches = list(reader)
    assert sum(len(batch.labels) for batch in batches) == 100
    assert [Path(image.path).name for image in reader.unreadable] == ["z.png", "a.jpg"]
    assert [image.reason for image in reader.unreadable] == [
        "the image is empty (0 bytes)",
        "not an image in a supported format",
    ]
    assert len(list(reader)) == len(batches)  # a second time the same, and not counted twice
    assert len(reader.unreadable) == 2


@pytest.mark.parametrize("limit", [0, 1])
def test_more_unreadable_images_than_allowed_end_it(damaged: Path, limit: int) -> None:
    reader = LabelledReader(load_evaluation_data(str(damaged)), SMALL, batch=4, max_unreadable=limit)
    with pytest.raises(DataError, match=f"{limit + 1} of the first .* over the limit of {limit}") as caught:
        list(reader)
    assert "z.png: the image is empty" in str(caught.value)
    assert "--max-unreadable" in str(caught.value)


def test_data_of_which_nothing_can_be_read_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"")
    reader = LabelledReader(load_evaluation_data(str(tmp_path)), SMALL, batch=4, max_unreadable=9)
    with pytest.raises(DataError, match="none of the images can be read"):
        list(reader)


def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        folder = tmp_path / str(count) / "a"
        folder.mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(folder / "0.png")
        for index in range(1, count):
            (folder / f"{index}.png").hardlink_to(folder / "0.png")
        data = load_evaluation_data(str(folder.parent))
        tracemalloc.start()
        for _ in LabelledReader(data, Preprocessing(resize=64, crop=64), batch=8):
            pass
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    peak(40)  # what Pillow loads once
    assert peak(800) < 1.5 * peak(80)


# ---- the command -----------------------------------------------------------------------------------


def test_a_bundle_and_its_checkpoint_have_the_same_score(
    quick_cli: QuickCli, demo_bundle: Path, idx_data: Path
) -> None:
    documents = []
    for source in (demo_bundle, DEMO_CHECKPOINT):
        done = quick_cli("evaluate", source, "--data", idx_data, "--json")
        assert done.returncode == 0, done.stderr
        documents.append(json.loads(done.stdout))
    bundle, checkpoint = documents
    assert (bundle["model"], bundle["runtime"], bundle["precision"]) == ("demo", "onnxruntime", "fp32")
    assert (checkpoint["model"], checkpoint["runtime"]) == (DEMO_CHECKPOINT.stem, "torch")
    known = open_bundle(demo_bundle).manifest.parity[0].accuracy
    assert known is not None
    for document in documents:
        assert document["images"] == 512
        assert document["top1"] == pytest.approx(known.reference_top1)
        assert document["top5"] > 99
        assert 0 < document["calibration"]["ece"] < 5
        low, high = document["top1_interval"]
        assert low < document["top1"] < high
        assert sum(cell["images"] for cell in document["confusion"]) == 512
    assert bundle["confusion"] == checkpoint["confusion"]
    assert bundle["calibration"]["ece"] == pytest.approx(checkpoint["calibration"]["ece"], abs=1e-3)


def test_the_table_shows_figures_classes_and_confusion(
    quick_cli: QuickCli, demo_bundle: Path, idx_data: Path
) -> None:
    done = quick_cli("evaluate", demo_bundle, "--data", idx_data)
    assert done.returncode == 0, done.stderr
    assert re.search(r"top-1 9\d\.\d\d % \(95 % interval \d\d\.\d\d to \d\d\.\d\d\), top-5", done.stdout)
    assert "ECE, 15 bins of equal width" in done.stdout
    rows = done.stdout.split("mostly taken for")[1].split("confusion")[0].split("\n")
    accuracies = [float(found[1]) for row in rows if (found := re.search(r"(\d+\.\d\d)", row))]
    assert len(accuracies) == 10
    assert accuracies == sorted(accuracies)
    assert "0 T-shirt/top" in done.stdout


def test_folders_are_matched_through_a_file_of_labels_and_rows_say_all(
    quick_cli: QuickCli, demo_bundle: Path, folders: Path, labels: Path, tmp_path: Path
) -> None:
    rows_path = tmp_path / "rows.csv"
    done = quick_cli(
        *("evaluate", demo_bundle, "--data", folders, "--labels", labels, "--csv", rows_path),
        *("--batch", 7, "--json"),
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["batch"] == 7
    assert [c["label"] for c in document["classes"]] == list(FOLDER_NAMES)
    with rows_path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == document["images"] == 100
    assert all(Path(row["image"]).parent.name == row["label"] for row in rows)
    right = [row for row in rows if row["label"] == row["prediction"]]
    assert all((row["rank"] == "0") == (row in right) for row in rows)
    assert len(right) == document["top1"] > 85
    confidence = math.fsum(float(row["probability"]) for row in rows)
    binned = math.fsum(b["images"] * (b["confidence"] or 0) for b in document["calibration"]["bins"])
    assert confidence == pytest.approx(binned / 100, abs=1e-3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["labels.txt", "rows.csv"]


def test_what_cannot_be_evaluated_says_why_and_writes_nothing(
    quick_cli: QuickCli, demo_bundle: Path, folders: Path, labels: Path, damaged: Path, tmp_path: Path
) -> None:
    few = tmp_path / "few.txt"
    few.write_text("a\nb\n")
    given = ("--data", damaged, "--labels", labels)
    rows = tmp_path / "rows.csv"
    for arguments, message in (
        ((demo_bundle, "--data", folders), "'T-shirt or top'; did you mean T-shirt/top?"),
        ((demo_bundle, "--data", folders, "--labels", few), "2 labels, the network has 10 classes"),
        ((demo_bundle, "--data", tmp_path / "absent"), "no such directory"),
        ((demo_bundle, *given, "--csv", rows), "over the limit of 0"),
        ((demo_bundle, *given, "--csv", tmp_path / "absent" / "rows.csv"), "does not exist"),
        ((DEMO_CHECKPOINT, *given, "--precision", "int8"), "a checkpoint runs in PyTorch, in fp32"),
        ((DEMO_CHECKPOINT, *given, "--runtime", "onnxruntime"), "a checkpoint runs in PyTorch"),
        ((demo_bundle, *given, "--runtime", "tflite"), "holds no fp32 graph that tflite can run"),
        ((demo_bundle, *given, "--batch", 0), "batch"),
    ):
        done = quick_cli("evaluate", *arguments)
        assert done.returncode == (1 if "tflite" in arguments else 2), arguments
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
        assert not rows.exists()


def test_unreadable_images_stand_in_the_answer(
    quick_cli: QuickCli, demo_bundle: Path, damaged: Path, labels: Path
) -> None:
    given = ("evaluate", demo_bundle, "--data", damaged, "--labels", labels, "--max-unreadable", 2)
    document = json.loads(quick_cli(*given, "--json").stdout)
    assert [Path(image["path"]).name for image in document["unreadable"]] == ["z.png", "a.jpg"]
    assert document["images"] == 100
    assert "2 images could not be read and are left out" in quick_cli(*given).stdout


def test_what_a_checkpoint_does_not_say_is_said(quick_cli: QuickCli, lct18: Path, tmp_path: Path) -> None:
    for name in range(7):
        (tmp_path / str(name)).mkdir()
        Image.new("RGB", (32, 32), (30 * name, 0, 0)).save(tmp_path / str(name) / "x.png")
    done = quick_cli("evaluate", lct18, "--data", tmp_path, "--batch", 2, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == 7
    assert "note: groups is not in the weights: assuming 16" in done.stderr
    assert "note: the checkpoint does not say its preprocessing: assuming resize 256, crop 224" in done.stderr


def test_what_was_compiled_is_what_is_scored(
    quick_cli: QuickCli, demo_bundle: Path, idx_data: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(demo_bundle, tmp_path / "compiled")
    assert quick_cli("compile", bundle, "--runtime", "onnxruntime", "--batch", "1,4").returncode == 0
    document = json.loads(quick_cli("evaluate", bundle, "--data", idx_data, "--json").stdout)
    plain = json.loads(quick_cli("evaluate", demo_bundle, "--data", idx_data, "--json").stdout)
    assert (document["batch"], plain["batch"]) == (4, 32)
    assert document["confusion"] == plain["confusion"]


def test_a_network_that_overflows_has_no_score(demo_bundle: Path, idx_data: Path, tmp_path: Path) -> None:
    model = onnx.load(demo_bundle / "model.onnx")
    tensor = next(t for t in model.graph.initializer if t.name.endswith("fc.weight"))
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(np.inf), tensor.name))
    onnx.save(model, tmp_path / "model.onnx")
    preprocessing = open_bundle(demo_bundle).manifest.input.preprocessing
    reader = LabelledReader(load_evaluation_data(str(idx_data)), preprocessing, batch=8)
    with (
        closing(open_artifact("onnxruntime", tmp_path / "model.onnx", RuntimeOptions())) as runtime,
        pytest.raises(ParityError, match="NaN or infinite on onnxruntime, fp32"),
    ):
        list(read_answers(runtime, reader, np.arange(10), description="test"))


def test_a_bundle_is_evaluated_without_torch(demo_bundle: Path, idx_data: Path) -> None:
    arguments = ["lct-deploy", "evaluate", str(demo_bundle), "--data", str(idx_data), "--json"]
    code = f"import sys\nfrom lct_deploy.cli import main\nsys.argv = {arguments!r}\nmain()"
    done = run_without(HEAVY, code)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == 512
