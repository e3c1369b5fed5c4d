"""PyTorch → ONNX: traced by torch.export, attention fused, cleaned, checked."""

import logging
import re
import warnings
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from onnx import ModelProto, NodeProto
from torch import nn

import lct_deploy
from exporters.attention import Replaced, replace_attention
from exporters.functions import DOMAIN, attention_function
from exporters.nodes import BATCH, MODULE_KEY, attention_nodes, node_module
from lct_deploy.errors import ExportError, UsageError
from lct_deploy.manifest import FusedBlock, FusionCertificate, Miss
from lct_deploy.models import Backbone, ResNet
from lct_deploy.models.classifier import ImageClassifier
from lct_deploy.preprocessing import Preprocessing

DEFAULT_OPSET = 20
OPSETS = range(18, 24)

_SCOPES = re.compile(r"'([^']*)'")


@dataclass(frozen=True, kw_only=True)
class ExportedGraph:
    """A checked graph and what became of its attention."""

    model: ModelProto
    certificate: FusionCertificate


def export_graph(
    network: ResNet, preprocessing: Preprocessing, *, opset: int = DEFAULT_OPSET, metadata: dict[str, str]
) -> ExportedGraph:
    """`image` uint8 (N, H, W, 3) → `logits` float32 (N, classes), N dynamic.

    Every fused attention is one node of domain `lct` whose function stands in the model. `metadata`
    becomes the model's metadata_props. Raises UsageError for an opset out of range, ExportError
    where the graph does not pass ONNX's checker and shape inference.
    """
    check_opset(opset)
    replaced = replace_attention(network)
    model = trace(ImageClassifier(replaced.network, preprocessing).eval(), preprocessing.crop, opset)
    return finish(model, network, replaced, opset=opset, metadata=metadata)


def check_opset(opset: int) -> None:
    if opset not in OPSETS:
        raise UsageError(f"opset {opset} is not supported", hint=f"--opset {OPSETS[0]} to {OPSETS[-1]}")


def trace(classifier: nn.Module, size: int, opset: int) -> ModelProto:
    return to_onnx(classifier, (size, size), dynamic=(0,), outputs=["logits"], opset=opset)


def to_onnx(
    network: nn.Module, size: tuple[int, int], *, dynamic: tuple[int, ...], outputs: list[str], opset: int
) -> ModelProto:
    """`network` as the tracer sees it on images of `size`, of whose dimensions some stay `dynamic`."""
    # Two images: torch.export specialises a dimension of one.
    example = torch.zeros(2, *size, 3, dtype=torch.uint8)
    shapes = {"image": dict.fromkeys(dynamic, torch.export.Dim.DYNAMIC)}
    with _quiet(), torch.no_grad():
        program = torch.export.export(network, (example,), dynamic_shapes=shapes)
        exported = torch.onnx.export(
            program,
            opset_version=opset,
            input_names=["image"],
            output_names=outputs,
            dynamo=True,
            optimize=True,  # folds BatchNorm into the convolutions
            verbose=False,
        )
    if exported is None:
        raise ExportError("torch.onnx.export returned no graph")
    return exported.model_proto


def finish(
    model: ModelProto,
    network: Backbone,
    replaced: Replaced[Any],
    *,
    opset: int,
    metadata: dict[str, str],
    by_rows: bool = False,
) -> ExportedGraph:
    """A traced `model` with our names, functions and metadata, and what became of `network`'s attention.

    `by_rows` is `attention_function`'s. Raises ExportError where it does not pass ONNX's checker and
    shape inference.
    """
    _tidy(model)
    for op in sorted(set(replaced.ops.values())):
        model.functions.append(attention_function(op, opset, by_rows=by_rows))
    onnx.helper.set_model_props(model, metadata)
    model.producer_name, model.producer_version = "lct-deploy", lct_deploy.__version__
    certificate = _certify(model, network, replaced.misses)
    return ExportedGraph(model=_checked(model), certificate=certificate)


@contextmanager
def _quiet() -> Generator[None]:
    """Silence the exporter's remarks on absent torchvision and its own deprecated calls."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)


def _tidy(model: ModelProto) -> None:
    """Names that speak of modules instead of the tracer, and no paths of the exporting machine."""
    seen: Counter[str] = Counter()
    for node in model.graph.node:
        module = _module_of(node)
        del node.metadata_props[:]
        node.doc_string = ""
        node.metadata_props.add(key=MODULE_KEY, value=module)
        name = f"{module or 'input'}/{node.op_type}"
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer):
        del value.metadata_props[:]
    del model.graph.value_info[:]  # inferred anew, with the batch dimension's name
    del model.graph.metadata_props[:]
    model.graph.name = "lct_deploy"
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = BATCH


def _module_of(node: NodeProto) -> str:
    """`layer1.0.attn` from the tracer's scopes `['', 'network', …, 'network.layer1.0.attn', 'op']`."""
    scopes = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), "")
    names = _SCOPES.findall(scopes)[:-1]
    return names[-1].removeprefix("network").removeprefix(".") if names else ""


def _certify(model: ModelProto, network: Backbone, misses: tuple[Miss, ...]) -> FusionCertificate:
    """Count in the graph itself what was fused: a block that got lost is a miss too."""
    nodes = {node_module(node): node for node in attention_nodes(model)}
    layers = list(network.attention_blocks())
    known = {miss.layer for miss in misses}
    lost = [
        Miss(layer=x, reason="absent from the graph") for x in layers if x not in nodes and x not in known
    ]
    return FusionCertificate(
        attention_blocks=len(layers),
        fused=tuple(
            FusedBlock(layer=layer, node=nodes[layer].name, op=f"{DOMAIN}::{nodes[layer].op_type}")
            for layer in layers
            if layer in nodes
        ),
        misses=(*misses, *lost),
    )


def _checked(model: ModelProto) -> ModelProto:
    """`model` with its shapes inferred; raises ExportError where ONNX finds fault with it."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
        onnx.checker.check_model(inferred, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported graph is not valid ONNX: {error}") from error
    return inferred
