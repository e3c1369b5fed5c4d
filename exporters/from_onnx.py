"""A finished .onnx file, its attention fused, with the file itself in onnxruntime as its reference."""

from functools import partial
from pathlib import Path

import onnx

from exporters.images import ParityImages
from exporters.onnx_source import OnnxSource, load_onnx, reference_attention, reference_logits
from exporters.options import ExportOptions
from exporters.prepared import Prepared
from exporters.proof import GATE_IMAGES, Proof, Reference
from exporters.settle import settle_labels, settle_preprocessing
from lct_deploy.checkpoint import LoadOptions
from lct_deploy.errors import UsageError
from lct_deploy.preprocessing import Preprocessing

_INSIDE = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # a graph that normalises takes pixels as they are
UNKNOWN_ARCH = "onnx"  # a graph does not say which network it is


def prepare_onnx(path: Path, options: ExportOptions) -> Prepared:
    """Read, fuse, settle what the graph does not say.

    Raises a UsageError for a file or an option that cannot be used, ExportError for a graph that has
    no attention or cannot take images and give logits.
    """
    _refuse_checkpoint_options(options.load)
    source = load_onnx(
        path, mean=options.mean, std=options.std, image_size=options.image_size, opset=options.opset
    )
    preprocessing, notes = _settle_preprocessing(source, options)
    labels, naming = settle_labels(source.labels, source.num_classes, options.labels)
    return Prepared(
        model=source.model,
        certificate=source.certificate,
        prove=partial(prove_onnx, source),
        arch=source.arch or UNKNOWN_ARCH,
        attention=source.attention,
        stride_placement=None,
        labels=labels,
        preprocessing=preprocessing,
        sha256=source.sha256,
        source="onnx",
        weights="model",
        versions={"onnx": onnx.__version__},
        notes=(*source.notes, *notes, *naming),
    )


def prove_onnx(source: OnnxSource, images: ParityImages) -> Proof:
    """Run the file's own graph over the images."""
    attention = reference_attention(source, images.images[:GATE_IMAGES])
    reference = Reference(
        logits=reference_logits(source, images.images), gates=attention.gates, contexts=attention.contexts
    )
    return Proof(images=images, reference=reference, source=source.path.name)


def _settle_preprocessing(source: OnnxSource, options: ExportOptions) -> tuple[Preprocessing, list[str]]:
    """As for a checkpoint, but size and normalisation are the graph's; flags may only say the same."""
    if source.height != source.width:
        raise UsageError(
            f"{source.path} takes images of {source.height}x{source.width} pixels; only square ones serve"
        )
    mean, std = source.normalization or _INSIDE
    known = options.model_copy(update={"mean": mean, "std": std})
    preprocessing, notes = settle_preprocessing(source.preprocessing, source.height, known)
    if preprocessing.crop != source.height:
        raise UsageError(
            f"{source.path} takes images of {source.height} pixels, not {preprocessing.crop}",
            hint="drop --image-size and --crop",
        )
    if source.normalization is None:
        notes.append("the graph normalises its images itself; how is not known")
    return preprocessing, notes


def _refuse_checkpoint_options(load: LoadOptions) -> None:
    given = [name for name, value in load if value is not None]
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UsageError(f"{flags}: for checkpoints; an .onnx file has its network inside")
