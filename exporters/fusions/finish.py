"""From the prepared graph to the file: functions, names, and the check that any batch runs."""

import numpy as np
import onnx_ir as ir
from onnx import ModelProto

import lct_deploy
from exporters.functions import DOMAIN, DOMAIN_VERSION, attention_function
from exporters.fusions.canonical import checked
from exporters.fusions.fuse import Fusion
from exporters.fusions.graph_input import IMAGE, GraphInput
from exporters.fusions.graph_output import LOGITS
from exporters.fusions.naming import module_of
from exporters.fusions.session import Session
from exporters.nodes import MODULE_KEY, attention_nodes
from lct_deploy.errors import ExportError

_IR_VERSION = 10  # the first in which nodes carry metadata
_BATCH_LIMIT = 1e-4  # of the largest logit: fp32's parity limit


def plain_copy(model: ir.Model) -> ModelProto:
    """The graph as it stands, runnable."""
    proto = ir.to_proto(model)
    _add_functions(proto)
    return proto


def finish(model: ir.Model) -> ModelProto:
    """A checked model that says where its nodes come from and nothing of the machine that exported it."""
    for node in model.graph:
        module = module_of(node)
        node.metadata_props.clear()
        node.metadata_props[MODULE_KEY] = module
        node.doc_string = None
    proto = ir.to_proto(model)
    _strip(proto)
    _add_functions(proto)
    proto.producer_name, proto.producer_version = "lct-deploy", lct_deploy.__version__
    return checked(proto)


def is_ours(model: ModelProto, fusion: Fusion) -> bool:
    """Whether a file has the contract and all its attention as nodes already."""
    graph = model.graph
    if fusion.blocks or fusion.certificate.misses or len(graph.input) != 1:
        return False
    names = (graph.input[0].name, graph.output[0].name)
    return names == (IMAGE, LOGITS) and not graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value")


def check_batch(model: ModelProto, source: GraphInput) -> None:
    """Raises ExportError unless three images at once get the logits that each gets alone."""
    images = np.random.default_rng(0).integers(0, 256, (3, source.height, source.width, 3), dtype=np.uint8)
    session = Session(model)
    try:
        together = session.run([LOGITS], images)[LOGITS]
    except ExportError as error:
        raise _batch_error(source, error.message) from error
    alone = np.concatenate([session.run([LOGITS], images[i : i + 1])[LOGITS] for i in range(3)])
    if together.shape != alone.shape or np.abs(together - alone).max() > _BATCH_LIMIT * np.abs(alone).max():
        raise _batch_error(source, "an image's logits depend on the others of its batch")


def _batch_error(source: GraphInput, reason: str) -> ExportError:
    made = f"exported for a batch of {source.batch} and " if source.batch else ""
    return ExportError(
        f"the graph is {made}not usable for other batches: {reason}",
        hint="export it with a dynamic batch: dynamic_axes, or dynamic_shapes with dynamo=True",
    )


def _add_functions(proto: ModelProto) -> None:
    """Our functions for the attention nodes that the graph has, and only those."""
    del proto.functions[:]
    ops = sorted({node.op_type for node in attention_nodes(proto)})
    opset = next(entry.version for entry in proto.opset_import if entry.domain == "")
    proto.functions.extend(attention_function(op, opset) for op in ops)
    if ops and all(entry.domain != DOMAIN for entry in proto.opset_import):
        proto.opset_import.add(domain=DOMAIN, version=DOMAIN_VERSION)
    proto.ir_version = max(proto.ir_version, _IR_VERSION)


def _strip(proto: ModelProto) -> None:
    graph = proto.graph
    kept = [(p.key, p.value) for p in proto.metadata_props if p.key.startswith("lct.")]
    del proto.metadata_props[:]
    for key, value in kept:
        proto.metadata_props.add(key=key, value=value)
    del graph.metadata_props[:]
    for value in (*graph.input, *graph.output, *graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    proto.doc_string, graph.doc_string, graph.name = "", "", "lct_deploy"
