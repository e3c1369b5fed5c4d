"""A checkpoint to a bundle that carries its proof, or to no bundle at all."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch

from exporters.graph import ExportedGraph, export_graph
from exporters.images import parity_images
from exporters.options import ExportOptions
from exporters.settle import settle_labels, settle_preprocessing
from exporters.verify import Proof, prove, verify_artifact
from lct_deploy.atomic import atomic_directory, check_new_directory, sha256_file
from lct_deploy.bundle import GOLDEN, GRAPH, MANIFEST
from lct_deploy.checkpoint import LoadedCheckpoint, load_checkpoint
from lct_deploy.errors import ExportError, ParityError, UsageError
from lct_deploy.manifest import (
    NAME_PATTERN,
    Artifact,
    FileRecord,
    FusionCertificate,
    InputSpec,
    Manifest,
    ParityReport,
    Profile,
    Source,
)
from lct_deploy.preprocessing import Preprocessing
from lct_deploy.progress import stderr
from lct_deploy.report import describe_certificate, describe_parity

GOLDEN_IMAGES = 16

Announce = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class _Settled:
    """A checkpoint with everything decided that its weights do not say."""

    name: str
    version: str
    loaded: LoadedCheckpoint
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    notes: tuple[str, ...]


def export_checkpoint(
    checkpoint: Path, output: Path, options: ExportOptions, *, command: str, announce: Announce
) -> Manifest:
    """Load, trace, fuse, verify, write; `announce` hears each result and each assumption.

    `command` is recorded as what made the bundle. Raises a UsageError for a checkpoint, option or
    output that cannot be used, ExportError for a graph that cannot be made or an attention that is
    not fused, ParityError for a graph that does not agree with PyTorch; `output` is then unchanged.
    """
    check_new_directory(output, overwrite=options.overwrite)
    settled = _settle(checkpoint, output, options)
    for note in settled.notes:
        announce(f"note: {note}")
    images = parity_images(settled.preprocessing, options.images, settled.labels)

    with stderr.status("exporting the graph …"):
        graph = export_graph(
            settled.loaded.model,
            settled.preprocessing,
            opset=options.opset,
            metadata=_graph_metadata(settled),
        )
    announce(describe_certificate(graph.certificate))
    _check_certificate(graph.certificate, allow_unfused=options.allow_unfused)

    proof = prove(settled.loaded.model, settled.preprocessing, images)
    with atomic_directory(output, overwrite=options.overwrite) as directory:
        onnx.save(graph.model, directory / GRAPH)
        _write_golden(directory / GOLDEN, proof)
        report = verify_artifact(directory / GRAPH, "onnxruntime", "fp32", proof)
        announce(describe_parity(report))
        if not report.passed:
            raise ParityError(
                f"{GRAPH} does not agree with PyTorch, no bundle is written",
                hint="the lines marked failure above say by how much",
            )
        manifest = _manifest(settled, directory, graph, report, command)
        (directory / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return manifest


def _settle(checkpoint: Path, output: Path, options: ExportOptions) -> _Settled:
    loaded = load_checkpoint(checkpoint, options.load)
    preprocessing, sizes = settle_preprocessing(loaded, options)
    labels, naming = settle_labels(loaded, options.labels)
    return _Settled(
        name=_checked(options.name or output.resolve().name, "a model's name", "--name"),
        version=_checked(options.version, "a version", "--model-version"),
        loaded=loaded,
        preprocessing=preprocessing,
        labels=labels,
        notes=(*loaded.notes, *sizes, *naming),
    )


def _checked(value: str, what: str, option: str) -> str:
    """Names and versions become parts of URLs."""
    if not re.fullmatch(NAME_PATTERN, value):
        raise UsageError(
            f"{value!r} cannot be {what} (letters, digits, '.', '_' and '-', 64 at most)",
            hint=f"give one with {option}",
        )
    return value


def _check_certificate(certificate: FusionCertificate, *, allow_unfused: bool) -> None:
    if certificate.misses and not allow_unfused:
        raise ExportError(
            f"{len(certificate.misses)} of {certificate.attention_blocks} attention blocks are not fused",
            hint="--allow-unfused exports them in plain operators",
        )


def _graph_metadata(settled: _Settled) -> dict[str, str]:
    """What the .onnx file says of itself where it travels without its bundle."""
    config = settled.loaded.config
    return {
        "lct.arch": config.arch,
        "lct.attention": config.attention.model_dump_json(),
        "lct.stride_placement": config.stride_placement,
        "lct.preprocessing": settled.preprocessing.model_dump_json(),
        "lct.labels": json.dumps(settled.labels),
        "lct.checkpoint_sha256": settled.loaded.sha256,
    }


def _write_golden(path: Path, proof: Proof) -> None:
    """A few inputs, spread over real and synthetic ones, with PyTorch's logits."""
    chosen = np.linspace(0, len(proof.images.images) - 1, GOLDEN_IMAGES).astype(int)
    np.savez_compressed(path, images=proof.images.images[chosen], logits=proof.reference.logits[chosen])


def _manifest(
    settled: _Settled, directory: Path, graph: ExportedGraph, report: ParityReport, command: str
) -> Manifest:
    config = settled.loaded.config
    artifact = Artifact(
        path=GRAPH,
        sha256=sha256_file(directory / GRAPH),
        runtime="portable",
        kind="graph",
        precision="fp32",
        profiles=(Profile(),),
        versions={"torch": torch.__version__, "onnx": onnx.__version__},
        verified=report.passed,
    )
    return Manifest(
        name=settled.name,
        version=settled.version,
        arch=config.arch,
        attention=config.attention,
        stride_placement=config.stride_placement,
        num_classes=config.num_classes,
        labels=settled.labels,
        input=InputSpec.of(settled.preprocessing),
        artifacts=(artifact,),
        golden=FileRecord(path=GOLDEN, sha256=sha256_file(directory / GOLDEN)),
        source=Source(
            checkpoint_sha256=settled.loaded.sha256, weights=settled.loaded.weights, notes=settled.notes
        ),
        certificate=graph.certificate,
        parity=(report,),
        commands=(command,),
    )
