"""The attention as one node that carries its compiled kernels: TensorRT takes it for our plugin."""

from typing import Any

from onnx import ModelProto, NodeProto, TensorProto, TypeProto

from exporters.editing import GraphEditor, attribute
from exporters.functions import (
    DOMAIN,
    DOMAIN_VERSION,
    LINEAR_CONTEXT_TRANSFORM,
    attention_function,
    standard_opset,
)
from exporters.nodes import attention_nodes, node_module
from lct_deploy.errors import ExportError
from lct_deploy.kernels.gpu.aot import compile_kernel
from lct_deploy.kernels.gpu.embedded import FIELD, NAMESPACE, VERSION, EmbeddedKernels
from lct_deploy.kernels.gpu.spec import ElementType, KernelSpec
from lct_deploy.runtime.flavours import FlavourName

_TYPES: dict[int, ElementType] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
}
_NATIVE = "--attention native"


def with_plugins(
    spelled: ModelProto, portable: ModelProto, capability: int, flavour: FlavourName
) -> ModelProto:
    """A copy of a graph for TensorRT, each attention one node with kernels for GPUs from `capability` on.

    `spelled` has the attention in standard operators, in whatever precision; `portable` is the graph that
    it was made from. Where the block's own input is added, the node is the whole tail of the block. Where
    another convolution's output is, TensorRT adds in that convolution: the node is the attention alone.

    TensorRT finds the plugin by the nodes' attributes; any other runtime takes the nodes' functions.
    Raises ExportError for an attention that the flavour's plugin cannot compute, or that is not found.
    """
    copy = ModelProto()
    copy.CopyFrom(spelled)
    writer = _Writer(copy, portable, capability, flavour)
    ops = {writer.put_back(node) for node in attention_nodes(portable)}
    if not ops:
        raise ExportError("the graph has no attention node that a plugin could compute", hint=_NATIVE)
    writer.editor.drop_unused()
    writer.editor.use_domain(DOMAIN, DOMAIN_VERSION)
    opset = standard_opset(copy)
    copy.functions.extend(attention_function(op, opset) for op in sorted(ops))
    return copy


class _Writer:
    """Puts the nodes of `portable` in the place of the operators that they were spelled in."""

    def __init__(
        self, model: ModelProto, portable: ModelProto, capability: int, flavour: FlavourName
    ) -> None:
        self.editor, self.portable = GraphEditor(model), GraphEditor(portable)
        self.capability, self.flavour = capability, flavour
        self.types = {value.name: value.type.tensor_type for value in model.graph.value_info}

    def put_back(self, node: NodeProto) -> str:
        """Replace one layer's operators; returns the new node's operator."""
        editor, layer = self.editor, node_module(node)
        if node.op_type != LINEAR_CONTEXT_TRANSFORM:
            raise ExportError(f"{layer}: there is no plugin for {DOMAIN}::{node.op_type}", hint=_NATIVE)
        x, y = self._ends(layer)
        tail = self._tail(y)
        kernels = self._kernels(node, x, residual=tail is not None)
        w, b = (editor.constant(name, self.portable.array(name)) for name in node.input[1:])
        old = editor.makers[y]
        inputs, output = [x, w, b], y
        if tail is not None:
            identity, relu = tail
            inputs, output = [x, identity, w, b], relu.output[0]
            editor.model.graph.node.remove(relu)
        editor.node(kernels.op, inputs, output, domain=DOMAIN, **_attributes(kernels))
        editor.replace(old)
        return kernels.op

    def _ends(self, layer: str) -> tuple[str, str]:
        """The tensors that a layer's operators read and leave to others."""
        editor = self.editor
        parts = [part for part in editor.model.graph.node if node_module(part) == layer]
        made = {name for part in parts for name in part.output}
        read = {name for part in parts for name in part.input} - made - set(editor.constants)
        left = {name for name in made if any(node_module(n) != layer for n in editor.readers[name])}
        if len(read) != 1 or len(left) != 1:
            raise ExportError(f"{layer}: its attention is not found in TensorRT's graph", hint=_NATIVE)
        return read.pop(), left.pop()

    def _tail(self, y: str) -> tuple[str, NodeProto] | None:
        """The identity that is added to an attention's output, and the ReLU of the sum.

        None unless the identity is read elsewhere too, as a block's own input is.
        """
        add = self.editor.only_reader(y)
        if add is None or add.op_type != "Add":
            return None
        identity = next(name for name in add.input if name != y)
        relu = self.editor.only_reader(add.output[0])
        if relu is None or relu.op_type != "Relu" or self.editor.only_reader(identity) is not None:
            return None
        return identity, relu

    def _kernels(self, node: NodeProto, x: str, *, residual: bool) -> EmbeddedKernels:
        spec = _spec(node, self.types[x], residual=residual)
        layer = node_module(node)
        if self.flavour == "tensorrt-rtx" and spec.dtype == "bf16":
            raise ExportError(
                f"{layer}: TensorRT-RTX has no plugins on bf16 tensors in channels-last order",
                hint=f"--precision fp16, or {_NATIVE}",
            )
        kernels = compile_kernel(spec, self.capability)
        if self.flavour == "tensorrt" and len(kernels) > 1:
            raise ExportError(
                f"{layer}: {spec.channels // spec.groups} channels × {spec.pixels} pixels of a group do not "
                "fit on chip, and TensorRT embeds no plugin that takes two kernels",
                hint=_NATIVE,
            )
        return EmbeddedKernels(spec=spec, kernels=kernels)


def _spec(node: NodeProto, x: TypeProto.Tensor, *, residual: bool) -> KernelSpec:
    _, channels, height, width = (dim.dim_value for dim in x.shape.dim)
    return KernelSpec(
        channels=channels,
        pixels=height * width,
        groups=attribute(node, "groups"),
        dtype=_TYPES[x.elem_type],
        layout="nhwc",
        residual=residual,
        relu=residual,
        epsilon=attribute(node, "epsilon"),
    )


def _attributes(kernels: EmbeddedKernels) -> dict[str, Any]:
    """Of the function, of TensorRT's parser, and of the plugin."""
    return {
        "groups": kernels.spec.groups,
        "epsilon": kernels.spec.epsilon,
        "plugin_namespace": NAMESPACE,
        "plugin_version": VERSION,
        "aot": 1,  # TensorRT's, which RTX has no use for: the kernel into the engine
        FIELD: kernels.model_dump_json(),
    }
