"""A portable fp32 graph rewritten for a runtime or a precision, and how it is compared with its reference."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import ModelProto

from exporters.functions import with_layer_normalization
from exporters.half import emulate, to_half
from exporters.images import ParityImages
from exporters.openvino import spell_for_openvino
from exporters.options import CalibrationOptions, ExportOptions, Target
from exporters.proof import Proof, verify_artifact
from exporters.quantization.calibration import calibrate
from exporters.quantization.emulation import compute_in_float
from exporters.quantization.images import (
    DEFAULT_IMAGES,
    CalibrationImages,
    calibration_images,
    content_hashes,
)
from exporters.quantization.numerics import EightBit
from exporters.quantization.qdq import quantize
from exporters.quantization.stem import cast_first
from exporters.spelling import spell_out
from lct_deploy.errors import DataError, UsageError
from lct_deploy.manifest import ParityReport, Precision
from lct_deploy.preprocessing import Preprocessing

# Which runtimes a precision has graphs for, the default first.
TARGETS: dict[Precision, tuple[Target, ...]] = {
    "fp32": ("portable", "onnxruntime", "tensorrt", "openvino"),
    "fp16": ("portable", "onnxruntime", "tensorrt"),
    "bf16": ("portable", "onnxruntime", "tensorrt", "openvino"),
    "int8": ("onnxruntime", "tensorrt", "openvino"),  # where Q/DQ may stand is a matter of the runtime
    "fp8": ("tensorrt",),
}

# What onnxruntime does not compute in on CPUs: a graph with the same answers, and what to say of it.
EMULATED: dict[Precision, tuple[Callable[[ModelProto], ModelProto], str]] = {
    "bf16": (
        emulate,
        "onnxruntime has no bf16 on CPUs: measured in float32 with every result rounded to bf16",
    ),
    "fp8": (
        compute_in_float,
        "onnxruntime has no fp8 on CPUs: measured in float32, weights and activations rounded to fp8",
    ),
}

CALIBRATED: tuple[EightBit, ...] = ("int8", "fp8")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A rewritten graph; `notes` say what it was made with."""

    model: ModelProto
    precision: Precision
    target: Target
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.precision}-{self.target}.onnx"

    @property
    def runtime(self) -> str:
        """What it is compared with the reference on."""
        return runs_on(self.target)


def runs_on(target: str) -> str:
    """The runtime that proves a graph for `target`: its own where that needs no GPU, else onnxruntime."""
    return "openvino" if target == "openvino" else "onnxruntime"


def choose_target(options: ExportOptions) -> Target:
    """The runtime that a variant is for; raises UsageError where the precision has no graph for it."""
    targets = TARGETS.get(options.precision)
    if targets is None:
        raise UsageError(
            f"there is no {options.precision} graph",
            hint="tf32 is how an engine computes an fp32 graph: lct-deploy compile BUNDLE --precision tf32",
        )
    target = options.target or targets[0]
    if target not in targets:
        raise UsageError(
            f"there is no {options.precision} graph for {target}", hint=f"--for {' or '.join(targets)}"
        )
    return target


def check_calibration(options: ExportOptions) -> None:
    """Raise UsageError where calibration data are missing, or given for nothing."""
    calibrated = options.precision in CALIBRATED
    if calibrated and options.calibration.data is None:
        raise UsageError(
            f"{options.precision} needs images to calibrate its ranges on",
            hint="--calib-data DIR, or fashion-mnist",
        )
    if not calibrated and options.calibration != CalibrationOptions():
        raise UsageError("calibration is for int8 and fp8", hint="--precision int8 or fp8, or drop --calib-…")


def make_variant(
    model: ModelProto, options: ExportOptions, preprocessing: Preprocessing, parity: ParityImages
) -> Variant:
    """`model` in the options' precision for their target; `parity` images stay out of the calibration.

    Raises DataError for calibration images that are too few, ExportError for a graph that cannot be
    rewritten.
    """
    target, precision = choose_target(options), options.precision
    notes: tuple[str, ...] = ()
    if target == "onnxruntime":
        model = with_layer_normalization(model)
    if precision in CALIBRATED:
        images = _calibration_images(options.calibration, preprocessing, parity)
        calibration = calibrate(model, images, options.calibration.method, total=len(images))
        notes = images.notes()
        model = quantize(model, calibration, "onnxruntime" if target == "portable" else target, precision)
    elif precision in ("fp16", "bf16"):
        model = to_half(model, precision)
    if target == "tensorrt":
        # The other precisions have moved their cast before the transpose themselves.
        model = spell_out(cast_first(model) if precision == "fp32" else model)
    if target == "openvino":
        model = spell_for_openvino(model)
    return Variant(model=model, precision=precision, target=target, notes=notes)


def _calibration_images(
    options: CalibrationOptions, preprocessing: Preprocessing, parity: ParityImages
) -> CalibrationImages:
    count = options.images or DEFAULT_IMAGES
    images = calibration_images(
        options.data or "", preprocessing, exclude=content_hashes(parity.images), count=count
    )
    if options.images is not None and images.available < options.images:
        raise DataError(
            f"{options.data}: holds {images.available} images, {options.images} were asked for",
            hint=f"--calib-images {images.available}, or add images",
        )
    return images


def verify_graph(
    path: Path, precision: Precision, proof: Proof, *, runtime: str = "onnxruntime"
) -> ParityReport:
    """Compare the graph at `path` with the reference, on OpenVINO or on onnxruntime's CPU provider.

    What that provider has no kernels for is emulated, and the report says so.
    """
    if runtime == "openvino" or precision not in EMULATED:
        return verify_artifact(path, precision, proof, runtime=runtime)
    emulation, warning = EMULATED[precision]
    with tempfile.TemporaryDirectory() as directory:
        emulated = Path(directory) / path.name
        onnx.save(emulation(onnx.load(path)), emulated)
        report = verify_artifact(emulated, precision, proof)
    return report.model_copy(update={"warnings": (*report.warnings, warning)})
