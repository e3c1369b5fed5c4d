"""Which images ranges are measured on, what a method takes from them, and in how much memory."""

import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import ModelProto, helper, numpy_helper
from PIL import Image

from exporters.graph import export_graph
from exporters.images import parity_images
from exporters.quantization.calibration import calibrate
from exporters.quantization.extremes import Extremes
from exporters.quantization.histogram import PERCENTILE, Histogram, Method, Range
from exporters.quantization.images import (
    MIN_IMAGES,
    CalibrationImages,
    calibration_images,
    content_hash,
    content_hashes,
)
from exporters.quantization.placement import placement, stem_input
from lct_deploy.architecture import model_config
from lct_deploy.datasets import FASHION_MNIST, FASHION_MNIST_DIR
from lct_deploy.errors import DataError, ExportError, ImageError
from lct_deploy.preprocessing import Preprocessing
from tests.conftest import random_network
from tests.idx import write_idx_dataset

SIZE = 32
PREPROCESSING = Preprocessing(resize=SIZE, crop=SIZE)
METHODS: tuple[Method, ...] = get_args(Method)


def noise(count: int, size: int = SIZE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def write_images(directory: Path, count: int, seed: int = 0) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(noise(count, seed=seed)):
        Image.fromarray(image).save(directory / f"{seed}-{index:03}.png")


def read(images: CalibrationImages) -> np.ndarray:
    return np.concatenate(list(images))


# Images


def test_a_directory_is_read_in_batches_the_same_way_every_time(tmp_path: Path) -> None:
    write_images(tmp_path / "a", 50)
    write_images(tmp_path / "b" / "deeper", 50, seed=1)
    images = calibration_images(str(tmp_path), PREPROCESSING, exclude=frozenset())
    batches = list(images)
    assert len(batches) == len(images) == 25
    assert all(batch.shape == (4, SIZE, SIZE, 3) and batch.dtype == np.uint8 for batch in batches)
    np.testing.assert_array_equal(np.concatenate(batches), read(images))
    expected = content_hashes(np.concatenate([noise(50), noise(50, seed=1)]))
    assert content_hashes(np.concatenate(batches)) == expected


def test_the_chosen_images_are_spread_over_the_directory(tmp_path: Path) -> None:
    write_images(tmp_path / "a", 80)
    write_images(tmp_path / "b", 80, seed=1)
    images = read(calibration_images(str(tmp_path), PREPROCESSING, exclude=frozenset(), count=70))
    first = len(content_hashes(images) & content_hashes(noise(80)))
    assert len(images) == 70
    assert 20 < first < 50


def test_the_training_images_of_a_data_set_are_taken(tmp_path: Path) -> None:
    write_images(tmp_path / "train" / "cat", 64)
    write_images(tmp_path / "val" / "cat", 64, seed=1)
    images = read(calibration_images(str(tmp_path), PREPROCESSING, exclude=frozenset()))
    assert content_hashes(images) == content_hashes(noise(64))


def test_an_idx_folder_gives_its_training_images(tmp_path: Path) -> None:
    write_idx_dataset(tmp_path, classes=2, train=70, test=10)
    images = calibration_images(str(tmp_path), PREPROCESSING, exclude=frozenset())
    assert read(images).shape == (70, SIZE, SIZE, 3)
    assert images.notes() == (f"ranges are calibrated on 70 images of {tmp_path}",)


@pytest.mark.skipif(not FASHION_MNIST_DIR.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_fashion_mnist_by_name_shares_no_image_with_the_shipped_sample() -> None:
    parity = content_hashes(parity_images(PREPROCESSING, None, ()).images)
    images = calibration_images(FASHION_MNIST, PREPROCESSING, exclude=parity)
    assert not content_hashes(read(images)) & parity
    assert images.used == 512


@pytest.mark.parametrize("count", [0, 1, MIN_IMAGES - 1])
def test_too_few_images_are_refused_with_both_numbers(count: int, tmp_path: Path) -> None:
    write_images(tmp_path, count)
    with pytest.raises(DataError, match=f"holds {count} .*calibration needs 64"):
        calibration_images(str(tmp_path), PREPROCESSING, exclude=frozenset())


def test_too_few_images_in_an_idx_folder(tmp_path: Path) -> None:
    write_idx_dataset(tmp_path, classes=2, train=63, test=80)
    with pytest.raises(DataError, match=r"holds 63 .*calibration needs 64"):
        calibration_images(str(tmp_path), PREPROCESSING, exclude=frozenset())


def test_a_directory_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such directory"):
        calibration_images(str(tmp_path / "absent"), PREPROCESSING, exclude=frozenset())


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    write_images(tmp_path, 64)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        read(calibration_images(str(tmp_path), PREPROCESSING, exclude=frozenset()))


def test_images_of_the_parity_set_are_left_out_and_others_take_their_place(tmp_path: Path) -> None:
    write_images(tmp_path, 100)
    excluded = content_hashes(noise(100)[:20])
    images = calibration_images(str(tmp_path), PREPROCESSING, exclude=excluded, count=70)
    assert not content_hashes(read(images)) & excluded
    assert images.used == 70
    assert images.skipped > 0
    note = f"{images.skipped} images that parity is measured on were left out of calibration"
    assert note in images.notes()


def test_a_copy_in_another_format_is_the_same_image(tmp_path: Path) -> None:
    write_images(tmp_path, 65)
    copy = noise(1, seed=9)[0]
    Image.fromarray(copy).save(tmp_path / "copy.webp", lossless=True)
    images = calibration_images(str(tmp_path), PREPROCESSING, exclude={content_hash(copy)})
    read(images)
    assert (images.used, images.skipped) == (65, 1)


def test_too_few_images_beside_those_of_parity(tmp_path: Path) -> None:
    write_images(tmp_path, 100)
    images = calibration_images(str(tmp_path), PREPROCESSING, exclude=content_hashes(noise(100)[:37]))
    with pytest.raises(DataError, match=r"63 images are left for calibration, which needs 64: 37 of its 100"):
        read(images)


# Histogram


FLOATS = hnp.arrays(
    np.float32,
    st.integers(1, 200),
    elements=st.floats(-1e6, 1e6, width=32, allow_nan=False, allow_subnormal=False),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=5))
@example([np.array([1, -3], np.float32), np.array([100], np.float32), np.array([-1e6, 2], np.float32)])
def test_a_histogram_counts_every_value_in_its_bin_whatever_came_before(parts: list[np.ndarray]) -> None:
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    values = np.concatenate(parts)
    assert histogram.counts.sum() == values.size
    assert (histogram.low, histogram.high) == (values.min(), values.max())
    width = 2 * histogram.limit / len(histogram.counts)
    centres = -histogram.limit + (np.arange(len(histogram.counts)) + 0.5) * width
    counted = np.repeat(centres, histogram.counts)
    np.testing.assert_allclose(counted, np.sort(values), rtol=0, atol=0.51 * width + 1e-6 * histogram.limit)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_percentile_is_numpys_quantile(scale: float) -> None:
    values = (np.random.default_rng(0).laplace(size=2_000_000) * scale).astype(np.float32)
    histogram = Histogram()
    for chunk in np.split(values, 10):
        histogram.add(chunk)
    expected = np.quantile(values, [1 - PERCENTILE, PERCENTILE])
    np.testing.assert_allclose(histogram.percentile(), expected, rtol=0.02)


@pytest.mark.parametrize("rectified", [False, True])
def test_entropy_cuts_off_a_far_outlier_and_little_else(rectified: bool) -> None:
    values = np.random.default_rng(0).standard_normal(1_000_000)
    values = np.maximum(values, 0) if rectified else values
    histogram = Histogram()
    histogram.add(np.append(values, 100).astype(np.float32))
    low, high = histogram.entropy()
    assert 3 < high < 10
    assert low == 0 if rectified else -10 < low < -3


def test_entropy_weighs_what_it_cuts_off() -> None:
    histogram = Histogram()
    histogram.add(np.random.default_rng(0).standard_normal(1_000_000).astype(np.float32))
    low, high = histogram.entropy()
    assert low < -3.5
    assert high > 3.5


@pytest.mark.parametrize("values", [[0.0], [3.0], [-3.0], [1e-30], [-2.0, 5.0], [0.0, 0.0, 7.0]])
def test_few_values_keep_their_range(values: list[float]) -> None:
    histogram = Histogram()
    histogram.add(np.array(values, np.float32))
    for low, high in (histogram.percentile(), histogram.entropy()):
        assert min(low, 0) == pytest.approx(min(*values, 0), rel=0.01, abs=1e-20)
        assert max(high, 0) == pytest.approx(max(*values, 0), rel=0.01, abs=1e-20)


def test_a_share_of_the_images_keeps_all_of_its_values() -> None:
    """However large the others are, and however many values they have."""
    values = np.random.default_rng(0).standard_normal((200, 3, 4, 4)).astype(np.float32)
    values[:8] *= 1000
    extremes = Extremes()
    for batch in np.split(values, 50):
        extremes.add(batch)
    low, high = extremes.within(0.95)
    flat = values.reshape(200, -1)
    assert np.mean(flat.min(axis=1) >= low) == pytest.approx(0.95, abs=0.005)
    assert np.mean(flat.max(axis=1) <= high) == pytest.approx(0.95, abs=0.005)
    assert -5 < low < high < 5
    assert extremes.within(1) == (values.min(), values.max())


# Calibration


@pytest.fixture(scope="module")
def graph() -> ModelProto:
    network = random_network(model_config("lct_resnet26", num_classes=5), size=SIZE)
    return export_graph(network, PREPROCESSING, metadata={}).model


def activations(model: ModelProto, tensor: str, images: np.ndarray) -> np.ndarray:
    exposed = ModelProto()
    exposed.CopyFrom(model)
    exposed.graph.output.append(helper.make_empty_tensor_value_info(tensor))
    session = onnxruntime.InferenceSession(exposed.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run([tensor], {"image": images})[0])


def test_min_max_is_what_the_graph_computes(graph: ModelProto) -> None:
    images = noise(6)
    ranges = calibrate(graph, np.split(images, 3), "min-max", total=3).ranges
    for name in ("relu", "getitem_9", "relu_3"):
        values = activations(graph, name, images)
        assert ranges[name] == pytest.approx((values.min(), values.max()), rel=1e-5)


def test_means_are_of_what_convolutions_and_the_classifier_read(graph: ModelProto) -> None:
    images = noise(6)
    means = calibrate(graph, np.split(images, 3), "min-max", total=3).means
    read = {node.input[0] for node in graph.graph.node if node.op_type in ("Conv", "Gemm")}
    assert set(means) == read
    for name in sorted(read):
        values = activations(graph, name, images)
        assert means[name] == pytest.approx(
            np.moveaxis(values, 1, 0).reshape(values.shape[1], -1).mean(1), abs=1e-4
        )


@pytest.mark.parametrize("method", METHODS)
def test_every_quantised_tensor_gets_a_range_within_its_values(graph: ModelProto, method: Method) -> None:
    batches = np.split(noise(8), 4)
    ranges = calibrate(graph, batches, method, total=4).ranges
    limits = calibrate(graph, batches, "min-max", total=4).ranges
    needed = {*placement(graph.graph, "onnxruntime").values(), *placement(graph.graph, "tensorrt").values()}
    assert set(ranges) == needed
    for name, (low, high) in ranges.items():
        assert limits[name].low <= low < high <= limits[name].high
        assert (low, high) != (0, 0)


@pytest.mark.parametrize("method", METHODS)
def test_the_range_of_the_input_does_not_depend_on_the_images(graph: ModelProto, method: Method) -> None:
    grey = np.full((2, SIZE, SIZE, 3), 120, np.uint8)
    low, high = calibrate(graph, [grey], method, total=1).ranges[stem_input(graph.graph)]
    mean, std = np.array(PREPROCESSING.mean), np.array(PREPROCESSING.std)
    assert low == pytest.approx((-mean / std).min())
    assert high == pytest.approx(((1 - mean) / std).max())


def test_the_graph_is_left_as_it_was(graph: ModelProto) -> None:
    before = graph.SerializeToString(deterministic=True)
    calibrate(graph, [noise(2)], "percentile", total=1)
    assert graph.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_activations_that_are_not_finite_are_refused_naming_the_first_layer(
    graph: ModelProto, value: float
) -> None:
    broken = ModelProto()
    broken.CopyFrom(graph)
    tensor = next(t for t in broken.graph.initializer if t.name == "network.layer2.0.conv3.weight_bias")
    values = numpy_helper.to_array(tensor).copy()
    values[3] = value
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    with pytest.raises(ExportError, match=r"layer2\.0\.bn3: activations are NaN or infinite"):
        calibrate(broken, [noise(2)], "percentile", total=1)


def test_no_images_at_all(graph: ModelProto) -> None:
    with pytest.raises(ExportError, match="no images"):
        calibrate(graph, [], "percentile", total=0)


_PEAK = """
import resource, sys
import numpy as np, onnx
from exporters.quantization.calibration import calibrate
model, count = onnx.load(sys.argv[1]), int(sys.argv[2])
batch = np.random.default_rng(0).integers(0, 256, (4, {size}, {size}, 3), dtype=np.uint8)
calibrate(model, (batch for _ in range(count)), sys.argv[3], total=count)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.parametrize("method", ["image-percentile", "percentile"])
def test_memory_does_not_grow_with_the_number_of_images(method: Method, tmp_path: Path) -> None:
    """One batch's activations are 40 MB here: kept, 30 of them would be over a gigabyte."""
    size = 128
    network = random_network(model_config("lct_resnet18", num_classes=5))
    graph = export_graph(network, Preprocessing(resize=size, crop=size), metadata={})
    onnx.save(graph.model, tmp_path / "model.onnx")

    def peak(count: int) -> int:
        command = [sys.executable, "-c", _PEAK.format(size=size), str(tmp_path / "model.onnx"), str(count)]
        done = subprocess.run([*command, method], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert peak(30) - peak(3) < 100


def test_ranges_are_plain_numbers(graph: ModelProto) -> None:
    range_ = calibrate(graph, [noise(2)], "percentile", total=1).ranges["relu"]
    assert isinstance(range_, Range)
    assert type(range_.low) is type(range_.high) is float
