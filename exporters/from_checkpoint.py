"""A checkpoint traced to a portable graph, with PyTorch as its reference."""

import json
from functools import partial
from pathlib import Path

import onnx
import torch

from exporters.graph import DEFAULT_OPSET, export_graph
from exporters.options import ExportOptions
from exporters.prepared import Prepared
from exporters.reference import prove
from exporters.settle import settle_labels, settle_preprocessing
from lct_deploy.checkpoint import LoadedCheckpoint, load_checkpoint
from lct_deploy.preprocessing import Preprocessing


def prepare_checkpoint(path: Path, options: ExportOptions) -> Prepared:
    """Load, settle what the weights do not say, trace and fuse.

    Raises a UsageError for a checkpoint or an option that cannot be used, ExportError for a graph
    that cannot be made.
    """
    loaded = load_checkpoint(path, options.load)
    config, metadata = loaded.config, loaded.metadata
    preprocessing, sizes = settle_preprocessing(
        metadata.preprocessing if metadata else None, config.family.image_size, options
    )
    labels, naming = settle_labels(metadata.labels if metadata else None, config.num_classes, options.labels)
    graph = export_graph(
        loaded.model,
        preprocessing,
        opset=options.opset or DEFAULT_OPSET,
        metadata=_graph_metadata(loaded, preprocessing, labels),
    )
    return Prepared(
        model=graph.model,
        certificate=graph.certificate,
        prove=partial(prove, loaded.model, preprocessing),
        arch=config.arch,
        attention=config.attention,
        stride_placement=config.stride_placement,
        labels=labels,
        preprocessing=preprocessing,
        sha256=loaded.sha256,
        source="checkpoint",
        weights=loaded.weights,
        versions={"torch": torch.__version__, "onnx": onnx.__version__},
        notes=(*loaded.notes, *sizes, *naming),
    )


def _graph_metadata(
    loaded: LoadedCheckpoint, preprocessing: Preprocessing, labels: tuple[str, ...]
) -> dict[str, str]:
    """What the .onnx file says of itself where it travels without its bundle."""
    config = loaded.config
    return {
        "lct.arch": config.arch,
        "lct.attention": config.attention.model_dump_json(),
        "lct.stride_placement": config.stride_placement,
        "lct.preprocessing": preprocessing.model_dump_json(),
        "lct.labels": json.dumps(labels),
        "lct.checkpoint_sha256": loaded.sha256,
    }
