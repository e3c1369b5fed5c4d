"""fp32 graph → fp16 or bf16, for runtimes that take the precision from the graph."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from exporters.functions import DOMAIN
from exporters.nodes import node_module
from exporters.quantization.placement import is_residual
from exporters.quantization.rewrite import copied, initializers, node_like, rewritten, with_opset
from exporters.quantization.stem import cast_first
from lct_deploy.errors import ExportError
from lct_deploy.manifest import PRECISION_KEY

Half = Literal["fp16", "bf16"]

_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_HALF_OPS = {"Conv", "Relu", "MaxPool", "Gemm"}
# The first operator set whose Conv and MaxPool take bfloat16; since 18 ours changed in nothing else.
_BF16_OPSET = 22


def to_half(model: ModelProto, precision: Half) -> ModelProto:
    """A copy of an fp32 graph that computes in `precision`; image and logits keep their types.

    Convolutions, ReLUs, residual additions, the scale and the classifier are in half, with their
    weights. All else is in float32: normalisation of the image, the final mean, and the gate with its
    parameters, or a whole attention that is not fused. Raises ExportError naming a layer whose
    weights are out of range.
    """
    source = cast_first(with_opset(model, _BF16_OPSET) if precision == "bf16" else model)
    writer = _Writer(source, precision)
    for node in source.graph.node:
        writer.rewrite(node)
    return rewritten(source, writer.nodes, writer.constants, precision=precision)


def emulate(model: ModelProto) -> ModelProto:
    """A copy of a graph by `to_half` that gives its logits without the type's arithmetic.

    It computes in float32, and rounds the result of every node to half, as a kernel does that
    accumulates in float32: for runtimes that have no kernels for the type, as onnxruntime has none
    for bfloat16 on CPUs.
    """
    precision = _precision(model)
    halves = _half_tensors(model.graph, _TYPES[precision])
    nodes = [part for node in model.graph.node for part in _rounded(node, halves, _TYPES[precision])]
    constants = {
        name: values.astype(np.float32)
        for name, values in initializers(model).items()
        if values.dtype == helper.tensor_dtype_to_np_dtype(_TYPES[precision])
    }
    emulated = ModelProto()
    emulated.CopyFrom(model)
    for function in emulated.functions:
        body = [part for node in function.node for part in _rounded_gate(node, _TYPES[precision])]
        del function.node[:]
        function.node.extend(body)
    return rewritten(emulated, nodes, constants, precision=precision)


class _Writer:
    """The nodes and new constants of the half graph, in order."""

    def __init__(self, model: ModelProto, precision: Half) -> None:
        self.graph, self.precision, self.type = model.graph, precision, _TYPES[precision]
        self.values = initializers(model)
        self.outputs = {output.name for output in model.graph.output}
        self.names: dict[str, str] = {}  # tensors in half, and what they are called
        self.casts: set[str] = set()
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, NDArray[Any]] = {}

    def rewrite(self, original: NodeProto) -> None:
        """Append a node, after it casts of what it reads in the other type."""
        node = copied(original)
        if not self._is_half(node):
            for index, name in enumerate(original.input):
                if name in self.names:
                    node.input[index] = self._cast(self.names[name], TensorProto.FLOAT, f"{name}_float", node)
            self.nodes.append(node)
            return
        for index, name in enumerate(original.input):
            node.input[index] = self._half_input(node, index, name)
        self.nodes.append(node)
        self._name_output(node)

    def _is_half(self, node: NodeProto) -> bool:
        return node.domain == DOMAIN or node.op_type in _HALF_OPS or is_residual(node, self.graph)

    def _half_input(self, node: NodeProto, index: int, name: str) -> str:
        if name in self.values:
            if node.domain != DOMAIN:
                self.constants[name] = self._half_weights(node, self.values[name])
            return name
        if name in self.names:
            return self.names[name]
        return self._cast(name, self.type, f"{name}_{self.precision}", node)

    def _half_weights(self, node: NodeProto, values: NDArray[Any]) -> NDArray[Any]:
        with np.errstate(over="ignore"):
            half = values.astype(helper.tensor_dtype_to_np_dtype(self.type))
        if not np.isfinite(half.astype(np.float32)).all():
            peak = np.abs(values).max()
            raise ExportError(
                f"{node_module(node)}: a weight of {peak:.3g} is out of {self.precision}'s range",
                hint="bf16 has the range of float32" if self.precision == "fp16" else None,
            )
        return half

    def _name_output(self, node: NodeProto) -> None:
        name = node.output[0]
        self.names[name] = name
        if name in self.outputs:
            self.names[name] = node.output[0] = f"{name}_{self.precision}"
            self._cast(node.output[0], TensorProto.FLOAT, name, node)

    def _cast(self, name: str, to: int, output: str, origin: NodeProto) -> str:
        if output not in self.casts:
            self.casts.add(output)
            self.nodes.append(node_like(origin, "Cast", [name], output, suffix=f"Cast/{output}", to=to))
        return output


def _precision(model: ModelProto) -> Half:
    return (
        "fp16" if any(p.key == PRECISION_KEY and p.value == "fp16" for p in model.metadata_props) else "bf16"
    )


def _half_tensors(graph: GraphProto, half: int) -> set[str]:
    return {value.name for value in graph.value_info if value.type.tensor_type.elem_type == half}


def _rounded(node: NodeProto, halves: set[str], half: int) -> list[NodeProto]:
    """`node` in float32, its result rounded to half and back."""
    output = node.output[0]
    if output not in halves:
        return [node]
    exact = copied(node)
    if node.op_type == "Cast":
        exact.attribute[0].i = TensorProto.FLOAT
    exact.output[0] = f"{output}_exact"
    return [
        exact,
        node_like(node, "Cast", [f"{output}_exact"], f"{output}_half", suffix="round", to=half),
        node_like(node, "Cast", [f"{output}_half"], output, suffix="widen", to=TensorProto.FLOAT),
    ]


def _rounded_gate(node: NodeProto, half: int) -> list[NodeProto]:
    """In the attention's function: the gate enters the scale in half, though X is float32 here."""
    if node.op_type != "CastLike":
        return [node]
    return [
        helper.make_node("Cast", [node.input[0]], ["gate_half"], to=half),
        helper.make_node("Cast", ["gate_half"], list(node.output), to=TensorProto.FLOAT),
    ]
