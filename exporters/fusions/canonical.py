"""A foreign graph in the form that fusions read: one opset, folded, shapes known, any batch.

The batch is frozen while shapes are inferred: with every dimension a number, the Shape, Gather and
Concat operators of the exporters fold away. Then it is freed again, which also frees graphs that were
exported for one image.
"""

import numpy as np
import onnx
import onnx_ir as ir
from onnx import ModelProto, version_converter
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter import rewrite
from onnxscript.rewriter.rules.common import (
    fuse_batchnorm_into_conv_rule,
    fuse_batchnorm_into_conv_transpose_rule,
    fuse_batchnorm_into_gemm_rule,
)
from onnxscript.version_converter import convert_version

from exporters.functions import DOMAIN
from exporters.fusions.graph_input import GraphInput
from exporters.fusions.onnx_file import OnnxFile, first_line
from exporters.fusions.value_names import register_constant
from exporters.graph import DEFAULT_OPSET, OPSETS
from lct_deploy.errors import CheckpointError, ExportError, UsageError

OLDEST_OPSET = 13
# Not the library's default rules: "x + 0" takes a sum with 1e-8 for x, and so an ε away.
_BATCH_NORM_RULES = (
    fuse_batchnorm_into_conv_rule,
    fuse_batchnorm_into_conv_transpose_rule,
    fuse_batchnorm_into_gemm_rule,
)
_SMALL = 2**16  # numbers in a constant
_FROZEN = 2  # a batch that no 1 of a constant can be taken for


def load_graph(file: OnnxFile) -> ir.Model:
    """The model with all functions but the attention's inlined; raises CheckpointError if it is damaged."""
    try:
        model = ir.from_proto(file.model)
        common.InlinePass(criteria=lambda function: function.domain != DOMAIN)(model)
        common.RemoveUnusedFunctionsPass()(model)
        common.RemoveInitializersFromInputsPass()(model)
    except Exception as error:  # what the checker lets pass, the library may still choke on
        raise _damaged(file, error) from error
    return model


def to_proto(file: OnnxFile, model: ir.Model) -> ModelProto:
    """Raises CheckpointError where a tensor of the file turns out to be damaged."""
    try:
        return ir.to_proto(model)
    except Exception as error:  # as above: tensors are read only now
        raise _damaged(file, error) from error


def _damaged(file: OnnxFile, error: Exception) -> CheckpointError:
    cause = error.__cause__ or error
    return CheckpointError(f"{file.path}: not valid ONNX: {first_line(cause)}")


def convert_opset(proto: ModelProto, wanted: int | None) -> tuple[ModelProto, str | None]:
    """The model in an opset that is exported, and a note if that is not its own.

    Raises UsageError for an opset that is too old, too new or cannot be converted.
    """
    own = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if own < OLDEST_OPSET:
        raise UsageError(
            f"the graph is of opset {own}; {OLDEST_OPSET} is the oldest that can be converted",
            hint=f"export it again with opset_version={DEFAULT_OPSET}",
        )
    if own > OPSETS[-1] or (wanted is not None and wanted < own):
        raise UsageError(
            f"the graph is of opset {own}, which cannot be converted down to {wanted or OPSETS[-1]}",
            hint=f"export it again with opset_version={DEFAULT_OPSET}",
        )
    target = wanted or (own if own in OPSETS else DEFAULT_OPSET)
    if target == own:
        return proto, None
    return _convert(proto, own, target), f"the graph is converted from opset {own} to {target}"


def _convert(proto: ModelProto, own: int, target: int) -> ModelProto:
    try:
        if own < OPSETS[0]:
            return version_converter.convert_version(proto, target)
        model = ir.from_proto(proto)
        convert_version(model, target, fallback=False)
        converted = ir.to_proto(model)
    except Exception as error:  # the converters raise what they please
        raise _unconverted(own, target, first_line(error)) from error
    if any(entry.domain == "" and entry.version != target for entry in converted.opset_import):
        raise _unconverted(own, target, "an operator has no conversion")
    return converted


def _unconverted(own: int, target: int, reason: str) -> ExportError:
    return ExportError(
        f"the graph cannot be converted from opset {own} to {target}: {reason}",
        hint=f"export it again with opset_version={target}",
    )


def canonicalise(proto: ModelProto, source: GraphInput) -> ir.Model:
    """Shapes inferred, constants folded, BatchNorm in the convolutions, the batch dynamic.

    Raises ExportError for a graph in which this fails.
    """
    batch = source.batch or _FROZEN
    try:
        model = ir.from_proto(proto)
        _freeze(model.graph, (batch, *source.shape))
        model = _infer_and_fold(model)
        _free(model.graph, batch)
    except Exception as error:  # passes of the library, on a graph from anywhere
        raise ExportError(
            f"the graph cannot be simplified: {first_line(error.__cause__ or error)}"
        ) from error
    return model


def _freeze(graph: ir.Graph, shape: tuple[int, ...]) -> None:
    for node in graph:
        for value in node.outputs:
            value.shape = None
    graph.inputs[0].shape = ir.Shape(shape)


def _infer_and_fold(model: ir.Model) -> ir.Model:
    """ONNX infers no shape for GroupNormalization, and none after it.

    InstanceNormalization keeps its input's shape in the same way: it stands in meanwhile.
    """
    hidden = [node for node in model.graph if node.op_type == "GroupNormalization"]
    for node in hidden:
        node.op_type = "InstanceNormalization"
        node.metadata_props["lct.op"] = "GroupNormalization"
    for _ in range(2):  # what is folded lets more shapes be inferred
        fold_constants_ir(model, onnx_shape_inference=True, should_fold=_is_folded)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.IdentityEliminationPass()(model)
    rewrite(model, _BATCH_NORM_RULES)
    model = common.ShapeInferencePass(data_prop=True)(model).model
    for node in model.graph:
        if op := node.metadata_props.pop("lct.op", None):
            node.op_type = op
    return model


def _is_folded(node: ir.Node) -> bool | None:
    """Small ones and zeros, which the optimizer leaves as operators; None leaves the choice to it."""
    if node.op_type != "ConstantOfShape" or node.inputs[0] is None or node.inputs[0].const_value is None:
        return None
    dims = node.inputs[0].const_value.numpy().astype(np.float64)
    return True if dims.prod() <= _SMALL else None


def _free(graph: ir.Graph, batch: int) -> None:
    """Constants that hold the frozen batch give way, and so does the batch in every shape."""
    for node in list(graph):
        shape = node.outputs[0].shape
        if node.op_type in ("Reshape", "Expand") and shape is not None and node.inputs[0] is not None:
            dims = [dim if isinstance(dim, int) else None for dim in shape]
            target = node.inputs[1]
            fixed = target is not None and target.const_value is not None
            if fixed and node.inputs[0].const_value is None and dims and None not in dims:
                _free_shape(graph, node, [int(dim) for dim in dims if dim is not None], batch)
    for node in graph:
        for value in node.outputs:
            if value.shape is not None and len(value.shape) and value.shape[0] == batch:
                value.shape = ir.Shape(["N", *list(value.shape)[1:]])


def _free_shape(graph: ir.Graph, node: ir.Node, dims: list[int], batch: int) -> None:
    """Reshape: the first dimension follows from the others. Expand: its 1 leaves the first as it is."""
    if node.op_type == "Reshape":
        dims[0] = -1
        node.attributes.pop("allowzero", None)
    elif dims[0] == batch:
        dims[0] = 1
    constant = np.array(dims, np.int64)
    node.replace_input_with(1, register_constant(graph, f"{node.outputs[0].name}.shape", constant))


def checked(proto: ModelProto) -> ModelProto:
    """`proto` with all shapes inferred anew; raises ExportError where ONNX finds fault with it."""
    del proto.graph.value_info[:]
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
        onnx.checker.check_model(inferred, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the prepared graph is not valid ONNX: {error}") from error
    return inferred
