"""A finished .onnx file as the source of a bundle: prepared, its attention fused, and its own reference.

source = load_onnx(path, mean=..., std=...)     source.model has the contract of our own exports
reference_logits(source, images)                the file itself in ONNX Runtime
reference_attention(source, images)             its contexts, and its own gates recomputed in float64
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import ModelProto
from pydantic import TypeAdapter, ValidationError

from exporters.fusions.attention_config import read_attention
from exporters.fusions.canonical import canonicalise, convert_opset, load_graph, to_proto
from exporters.fusions.finish import check_batch, finish, is_ours, plain_copy
from exporters.fusions.fuse import Block, Fusion, fuse
from exporters.fusions.graph_input import GraphInput, Normalization, adapt_input, read_input
from exporters.fusions.graph_output import adapt_output, drop_softmax
from exporters.fusions.normalization import read_normalization
from exporters.fusions.onnx_file import OnnxFile, read_onnx
from exporters.fusions.precision import cancellation_note
from exporters.fusions.region import Part
from exporters.fusions.session import Session
from exporters.gates import expose_gates
from lct_deploy.architecture import AttentionConfig
from lct_deploy.errors import CheckpointError, ExportError, UsageError
from lct_deploy.manifest import FusionCertificate
from lct_deploy.preprocessing import Preprocessing, Rgb

BATCH = 8
_LOOKED_FOR = (
    "Mul(X, sigmoid(a)) where a is made of X's mean over H and W: (z − μ) / sqrt(var + ε) within channel "
    "groups, scaled and shifted (LCT), or two layers with a ReLU between them (SE), or both (SE+)"
)


@dataclass(frozen=True, kw_only=True)
class SourceGraph:
    """The file's own graph, functions inlined and a final softmax dropped: what parity refers to."""

    model: ModelProto
    input: GraphInput
    logits: str


@dataclass(frozen=True, kw_only=True)
class GateReference:
    """Where the unfused graph has a block's context, and its own function from there to the pre-sigmoid."""

    context: str
    transform: Part


@dataclass(frozen=True, kw_only=True)
class AttentionReference:
    """Contexts and gates (N, C) by layer."""

    contexts: dict[str, NDArray[np.float64]]
    gates: dict[str, NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class OnnxSource:
    """`model`: image uint8 (N, H, W, 3) → logits float32 (N, classes), N dynamic, attention fused.

    normalization (mean, std) is None where the graph normalises its images in a way that could not be
    read; preprocessing, labels and arch are set for files that carry our metadata; attention is None where
    blocks differ.
    """

    path: Path
    sha256: str
    model: ModelProto
    certificate: FusionCertificate
    notes: tuple[str, ...]
    height: int
    width: int
    num_classes: int
    normalization: Normalization | None
    attention: AttentionConfig | None
    arch: str | None
    labels: tuple[str, ...] | None
    preprocessing: Preprocessing | None
    graph: SourceGraph
    unfused: ModelProto
    gates: Mapping[str, GateReference]


@dataclass(frozen=True, kw_only=True)
class _Metadata:
    """What our own exports say of themselves."""

    preprocessing: Preprocessing | None
    labels: tuple[str, ...] | None
    arch: str | None
    attention: AttentionConfig | None


def load_onnx(
    path: Path,
    *,
    mean: Rgb | None = None,
    std: Rgb | None = None,
    image_size: int | None = None,
    opset: int | None = None,
) -> OnnxSource:
    """Read, prepare and fuse the model at `path`; mean and std are those for pixels in [0, 1].

    Blocks that are not fused are misses in the certificate. Raises a UsageError for a file or an
    option that cannot be used, ExportError for a graph that cannot be brought into the contract or
    has no attention.
    """
    file = read_onnx(path)
    metadata = _read_metadata(file)
    graph, softmax = _source_graph(file, image_size)
    image = graph.input
    normalization = _settle_normalization(path, image, metadata, mean, std)

    proto, converted = convert_opset(graph.model, opset)
    model = canonicalise(proto, image)
    adapt_input(model.graph, image, normalization)
    classes = adapt_output(model.graph)
    if image.kind == "uint8 NHWC":
        normalization = _own_normalization(path, model.graph, mean, std) or normalization
    unfused = plain_copy(model)
    fusion = fuse(model)
    _require_attention(path, fusion)
    prepared = file.model if is_ours(file.model, fusion) and converted is None else finish(model)
    check_batch(prepared, image)
    return OnnxSource(
        path=path,
        sha256=file.sha256,
        model=prepared,
        certificate=fusion.certificate,
        notes=_notes(converted, softmax, image, fusion),
        height=image.height,
        width=image.width,
        num_classes=classes,
        normalization=normalization,
        attention=metadata.attention or read_attention(model.graph),
        arch=metadata.arch,
        labels=metadata.labels,
        preprocessing=metadata.preprocessing,
        graph=graph,
        unfused=unfused,
        gates={block.layer: _gate_reference(block) for block in fusion.blocks},
    )


def reference_logits(source: OnnxSource, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Logits (N, classes) of the file's own graph for images (N, H, W, 3), in ONNX Runtime, float32."""
    graph = source.graph
    return Session(graph.model).run_all(
        [graph.logits],
        graph.input.feed(images, source.normalization),
        batch=graph.input.batch or BATCH,
        fixed=graph.input.batch is not None,
    )[graph.logits]


def reference_attention(source: OnnxSource, images: NDArray[np.uint8]) -> AttentionReference:
    """Contexts of the unfused graph, and gates from them by its own operators in float64.

    Blocks that the file had as nodes of domain `lct` give theirs in float32.
    """
    model = ModelProto()
    model.CopyFrom(source.unfused)
    exposed = expose_gates(model)
    places = {layer: names.context or "" for layer, names in exposed.items()}
    places |= {layer: gate.context for layer, gate in source.gates.items()}
    for name in dict.fromkeys(gate.context for gate in source.gates.values()):
        model.graph.output.add().name = name
    names = list(dict.fromkeys([*places.values(), *(names.gate for names in exposed.values())]))
    values = Session(model).run_all(names, images, batch=BATCH, fixed=False) if names else {}
    contexts = {
        layer: values[name].astype(np.float64).reshape(len(images), -1) for layer, name in places.items()
    }
    gates = {layer: values[names.gate].astype(np.float64) for layer, names in exposed.items()}
    for layer, gate in source.gates.items():
        gates[layer] = 1 / (1 + np.exp(-gate.transform(contexts[layer])))
    layers = [block.layer for block in source.certificate.fused]
    return AttentionReference(
        contexts={layer: contexts[layer] for layer in layers}, gates={layer: gates[layer] for layer in layers}
    )


def _source_graph(file: OnnxFile, image_size: int | None) -> tuple[SourceGraph, str | None]:
    """The file's own graph, and a note where it ended in a softmax."""
    model = load_graph(file)
    softmax = drop_softmax(model.graph)
    image = read_input(model.graph, image_size)
    return SourceGraph(
        model=to_proto(file, model), input=image, logits=model.graph.outputs[0].name or ""
    ), softmax


def _gate_reference(block: Block) -> GateReference:
    return GateReference(context=block.site.context.name or "", transform=block.site.transform)


def _read_metadata(file: OnnxFile) -> _Metadata:
    held = {entry.key: entry.value for entry in file.model.metadata_props}
    own, labels, attention = (held.get(f"lct.{key}") for key in ("preprocessing", "labels", "attention"))
    try:
        return _Metadata(
            preprocessing=Preprocessing.model_validate_json(own) if own else None,
            labels=TypeAdapter(tuple[str, ...]).validate_python(json.loads(labels)) if labels else None,
            arch=held.get("lct.arch"),
            attention=AttentionConfig.model_validate_json(attention) if attention else None,
        )
    except (ValidationError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{file.path}: its metadata lct.* are damaged: {error}") from error


def _settle_normalization(
    path: Path, image: GraphInput, metadata: _Metadata, mean: Rgb | None, std: Rgb | None
) -> Normalization | None:
    """From the flags or the metadata; raises UsageError where they are missing or contradict it."""
    own = metadata.preprocessing
    if own is not None:
        _refuse(path, "its metadata say", {"mean": (mean, own.mean), "std": (std, own.std)})
        return own.mean, own.std
    if image.kind == "uint8 NHWC":
        return None
    if mean is None or std is None:
        raise UsageError(
            f"{path} takes normalised pixels and does not say how they were normalised",
            hint="give --mean and --std, for pixels in [0, 1]; ImageNet's are "
            "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225",
        )
    return mean, std


def _own_normalization(
    path: Path, graph: ir.Graph, mean: Rgb | None, std: Rgb | None
) -> Normalization | None:
    """A graph that takes uint8 normalises itself: flags cannot change it, only say the same."""
    found = read_normalization(graph)
    if found is not None:
        _refuse(path, "its graph computes", {"mean": (mean, found[0]), "std": (std, found[1])})
    elif mean is not None or std is not None:
        raise UsageError(
            f"{path} takes uint8 images and normalises them itself, as --mean and --std cannot change",
            hint="drop --mean and --std",
        )
    return found


def _refuse(path: Path, says: str, pairs: dict[str, tuple[Rgb | None, Rgb]]) -> None:
    for name, (given, own) in pairs.items():
        if given is not None and not np.allclose(given, own, rtol=0, atol=1e-5):
            raise CheckpointError(f"--{name} {given} contradicts {path}: {says} {own}", hint=f"drop --{name}")


def _require_attention(path: Path, fusion: Fusion) -> None:
    if not fusion.certificate.attention_blocks:
        raise ExportError(f"{path}: no attention found", hint=f"looked for: {_LOOKED_FOR}")


def _notes(converted: str | None, softmax: str | None, image: GraphInput, fusion: Fusion) -> tuple[str, ...]:
    fixed = f"the graph was exported for a batch of {image.batch}; now it takes any" if image.batch else None
    notes = (
        converted,
        softmax,
        fixed,
        cancellation_note([block.layer for block in fusion.blocks if block.cancels]),
    )
    return tuple(note for note in notes if note is not None)
