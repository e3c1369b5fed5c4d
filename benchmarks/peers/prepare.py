"""What is compared, made once and kept under build/bench: checkpoints, bundles, and graphs for others.

naive    a plain torch.onnx.export; for int8 with onnxruntime's quantize_static as it comes
plain    the bundle's own graph for onnxruntime without model-local functions, which OpenVINO does not read
"""

import io
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import ModelProto
from onnx.inliner import inline_local_functions
from PIL import Image

from benchmarks.naive import naive_graph, quantize_naively
from benchmarks.networks import photograph_network
from benchmarks.serving.photos import photos
from lct_deploy.atomic import atomic_file
from lct_deploy.bundle import open_bundle
from lct_deploy.checkpoint import load_checkpoint
from lct_deploy.errors import LctDeployError
from lct_deploy.manifest import Precision, RuntimeName
from lct_deploy.parity import MIN_IMAGES
from lct_deploy.preprocessing import evaluation_preprocessing, preprocess

ROOT = Path(__file__).parent.parent.parent / "build" / "bench"
BATCHES = "1,8"  # that our graphs are compiled for
CALIBRATION = 64  # images
SQUARE = 350  # pixels of their sides, of 375: a part of a photograph still looks like the whole


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Files of one architecture at one size of its input; `prepare` makes those that are missing."""

    arch: str
    size: int = 224  # pixels

    @property
    def directory(self) -> Path:
        return ROOT / f"{self.arch}-{self.size}"

    @property
    def checkpoint(self) -> Path:
        return self.directory / f"{self.arch}.pt"

    @property
    def calibration(self) -> Path:
        return image_folders()[1]

    def runtimes(self, precision: Precision) -> tuple[RuntimeName, ...]:
        """Of ours; onnxruntime has no bf16 on a CPU."""
        return ("openvino",) if precision == "bf16" else ("onnxruntime", "openvino")

    def bundle(self, precision: Precision, runtime: RuntimeName = "onnxruntime") -> Path:
        suffix = "" if runtime == "onnxruntime" else f"-{runtime}"
        return self.directory / f"{self.arch}-{precision}{suffix}"

    def naive(self, precision: Precision) -> Path:
        return self.directory / f"naive-{precision}.onnx"

    def plain_graph(self, precision: Precision) -> Path:
        return self.directory / f"plain-{precision}.onnx"


def prepare(arch: str, precision: Precision, *, size: int = 224) -> Prepared:
    """Make what is missing for one architecture in one precision; all start from fp32's graph, too.

    Raises LctDeployError where one of our own commands fails; its message stands above.
    """
    prepared = prepare_bundle(arch, "fp32", size=size)
    for runtime in prepared.runtimes(precision):
        _make_bundle(prepared, precision, runtime)
    _make_graphs(prepared, "fp32")
    if precision == "int8":
        _make_graphs(prepared, precision)
    return prepared


def prepare_bundle(arch: str, precision: Precision, *, size: int = 224) -> Prepared:
    """The bundle for onnxruntime alone, compiled for this machine."""
    prepared = Prepared(arch=arch, size=size)
    make_checkpoint(arch, size=size)
    _make_bundle(prepared, precision, "onnxruntime")
    return prepared


def _make_graphs(prepared: Prepared, precision: Precision) -> None:
    """Those for others."""
    plain, naive = prepared.plain_graph(precision), prepared.naive(precision)
    if not plain.is_file():
        bundle = open_bundle(prepared.bundle(precision))
        graph = onnx.load(bundle.file(bundle.artifact("onnxruntime", precision)))
        _save(inline_local_functions(graph), plain)
    if not naive.is_file():
        _save(_naive(prepared, precision), naive)


def make_checkpoint(arch: str, *, size: int = 224) -> Path:
    """Weights that tell the parts of photographs apart that the bundles are proved on."""
    prepared = Prepared(arch=arch, size=size)
    prepared.directory.mkdir(parents=True, exist_ok=True)
    if not prepared.checkpoint.is_file():
        preprocessing = evaluation_preprocessing(size)
        crops = _crops()[:CALIBRATION]
        images = np.stack([preprocess(crop, preprocessing) for crop in crops])
        labels = np.arange(len(crops)) % len(photos())  # they take turns
        network = photograph_network(arch, images, labels, preprocessing)
        with atomic_file(prepared.checkpoint) as temporary:
            torch.save(network.state_dict(), temporary)
    return prepared.checkpoint


def _make_bundle(prepared: Prepared, precision: Precision, runtime: RuntimeName) -> None:
    bundle = prepared.bundle(precision, runtime)
    images, calibration = image_folders()
    if not bundle.is_dir():
        options = ["--images", images, "--image-size", prepared.size, "--precision", precision]
        if precision == "int8":
            options += ["--calib-data", calibration]
        if runtime == "openvino":
            options += ["--for", runtime]
        _command("export", prepared.checkpoint, "-o", bundle, *options)
    if runtime == "onnxruntime" and not any(
        artifact.kind == "compiled" for artifact in open_bundle(bundle).manifest.artifacts
    ):
        _command("compile", bundle, "--runtime", "onnxruntime", "--batch", BATCHES, "--images", images)


def image_folders() -> tuple[Path, Path]:
    """Images to prove parity on, and others to calibrate with: parts of made photographs."""
    folders = ROOT / "images", ROOT / "calibration"
    if not folders[1].is_dir():
        crops = _crops()
        for folder, chosen in zip(folders, (crops[CALIBRATION:], crops[:CALIBRATION]), strict=True):
            temporary = folder.with_suffix(".new")
            temporary.mkdir(parents=True, exist_ok=True)
            for index, image in enumerate(chosen):
                image.save(temporary / f"{index}.png")
            temporary.rename(folder)
    return folders


def _crops() -> list[Image.Image]:
    """MIN_IMAGES and CALIBRATION squares, each somewhere else in a photograph."""
    made = [Image.open(io.BytesIO(photo)).convert("RGB") for photo in photos()]
    rng, crops = np.random.default_rng(0), list[Image.Image]()
    for index in range(MIN_IMAGES + CALIBRATION):
        image = made[index % len(made)]
        left, top = (int(rng.integers(side - SQUARE)) for side in image.size)
        crops.append(image.crop((left, top, left + SQUARE, top + SQUARE)))
    return crops


def _naive(prepared: Prepared, precision: Precision) -> ModelProto:
    bundle = open_bundle(prepared.bundle(precision))
    preprocessing = bundle.manifest.input.preprocessing
    graph = naive_graph(load_checkpoint(prepared.checkpoint).model, preprocessing)
    if precision != "int8":
        return graph
    with tempfile.TemporaryDirectory() as directory:
        return quantize_naively(graph, preprocessing, Path(directory))


def _save(graph: ModelProto, path: Path) -> None:
    with atomic_file(path) as temporary:
        onnx.save(graph, temporary)


def _command(*arguments: object) -> None:
    command = [sys.executable, "-m", "lct_deploy", *map(str, arguments)]
    if subprocess.run(command, check=False).returncode:  # noqa: S603 - ours
        raise LctDeployError(f"failed: {shlex.join(command)}")
