"""Steps that the rewrites to a lower precision share."""

from collections.abc import Mapping
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from exporters.nodes import MODULE_KEY, node_module
from lct_deploy.errors import ExportError
from lct_deploy.manifest import PRECISION_KEY, Precision

Constants = Mapping[str, NDArray[Any]]


def initializers(model: ModelProto) -> dict[str, NDArray[Any]]:
    """The graph's constants by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def copied(node: NodeProto) -> NodeProto:
    """A node to edit while the model that it comes from stays as it is."""
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def node_like(
    origin: NodeProto,
    op: str,
    inputs: list[str],
    output: str,
    *,
    suffix: str | None = None,
    **attributes: Any,
) -> NodeProto:
    """A node of `origin`'s module, named after it."""
    name = f"{origin.name}/{suffix or op}"
    node = helper.make_node(op, inputs, [output], name=name, **attributes)
    node.metadata_props.add(key=MODULE_KEY, value=node_module(origin))
    return node


def with_opset(model: ModelProto, least: int) -> ModelProto:
    """A copy of `model` in the standard operator set `least` or its own, if that is newer."""
    copy = ModelProto()
    copy.CopyFrom(model)
    for owner in (copy, *copy.functions):
        for entry in owner.opset_import:
            if entry.domain == "":
                entry.version = max(entry.version, least)
    return copy


def rewritten(
    model: ModelProto, nodes: list[NodeProto], constants: Constants, *, precision: Precision
) -> ModelProto:
    """A copy of `model` with other nodes and more constants, less those that nothing reads.

    Its shapes are inferred anew. Raises ExportError where ONNX finds fault with it.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    read = {name for node in nodes for name in node.input}
    kept = [
        tensor for tensor in copy.graph.initializer if tensor.name in read and tensor.name not in constants
    ]
    del copy.graph.node[:], copy.graph.initializer[:], copy.graph.value_info[:]
    copy.graph.node.extend(nodes)
    copy.graph.initializer.extend(kept)
    copy.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in constants.items())
    metadata = {entry.key: entry.value for entry in copy.metadata_props}
    helper.set_model_props(copy, {**metadata, PRECISION_KEY: precision})
    return _checked(copy)


def _checked(model: ModelProto) -> ModelProto:
    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
        onnx.checker.check_model(inferred, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the rewritten graph is not valid ONNX: {error}") from error
    return inferred
