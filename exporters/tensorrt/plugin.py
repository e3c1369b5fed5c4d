"""The attention as one node that carries its compiled kernels: TensorRT takes it for our plugin."""

from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

from exporters.editing import GraphEditor, attribute
from exporters.functions import DOMAIN, DOMAIN_VERSION, LINEAR_CONTEXT_TRANSFORM, attention_function
from exporters.nodes import attention_nodes, node_module
from lct_deploy.errors import ExportError
from lct_deploy.kernels.gpu.aot import compile_kernel
from lct_deploy.kernels.gpu.embedded import EmbeddedKernels
from lct_deploy.kernels.gpu.spec import ElementType, KernelSpec

_TYPES: dict[int, ElementType] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
}
_PLUGIN_VERSION = "1"


def with_plugins(spelled: ModelProto, portable: ModelProto, capability: int) -> ModelProto:
    """A copy of a graph for TensorRT, each attention one node with kernels for GPUs from `capability` on.

    `spelled` has the attention in standard operators, in whatever precision; `portable` is the graph that
    it was made from. TensorRT finds the plugin by the nodes' attributes; any other runtime takes the
    node's function. Raises ExportError for an attention that has no kernel, or is not found.
    """
    copy = ModelProto()
    copy.CopyFrom(spelled)
    editor, given = GraphEditor(copy), GraphEditor(portable)
    values = {value.name: value for value in spelled.graph.value_info}
    nodes = attention_nodes(portable)
    for node in nodes:
        _put_back(editor, given, node, values, capability)
    editor.drop_unused()
    editor.use_domain(DOMAIN, DOMAIN_VERSION)
    opset = next(entry.version for entry in copy.opset_import if entry.domain == "")
    copy.functions.extend(attention_function(op, opset) for op in sorted({node.op_type for node in nodes}))
    return copy


def _put_back(
    editor: GraphEditor,
    given: GraphEditor,
    node: NodeProto,
    values: dict[str, ValueInfoProto],
    capability: int,
) -> None:
    """One node in the place of the operators that its layer was spelled in."""
    layer = node_module(node)
    parts = [part for part in editor.model.graph.node if node_module(part) == layer]
    made = {name for part in parts for name in part.output}
    read = {name for part in parts for name in part.input} - made - set(editor.constants)
    left = [name for name in made if any(node_module(reader) != layer for reader in editor.readers[name])]
    if len(read) != 1 or len(left) != 1:
        raise ExportError(f"{layer}: its attention is not found in the graph", hint="--attention native")
    (x,), (y,) = read, left
    kernels = _kernels(node, values[x], capability)
    w, b = (editor.constant(name, given.array(name)) for name in node.input[1:])
    editor.node(
        node.op_type,
        [x, w, b],
        y,
        domain=DOMAIN,
        groups=kernels.spec.groups,
        epsilon=kernels.spec.epsilon,
        plugin_namespace=DOMAIN,
        plugin_version=_PLUGIN_VERSION,
        aot=1,  # TensorRT, not RTX: the kernel into the engine
        kernels=kernels.model_dump_json(),
    )
    editor.replace(editor.makers[y])


def _kernels(node: NodeProto, x: ValueInfoProto, capability: int) -> EmbeddedKernels:
    if node.op_type != LINEAR_CONTEXT_TRANSFORM:
        raise ExportError(
            f"{node_module(node)}: there is no plugin for {DOMAIN}::{node.op_type}", hint="--attention native"
        )
    _, channels, height, width = (dim.dim_value for dim in x.type.tensor_type.shape.dim)
    spec = KernelSpec(
        channels=channels,
        pixels=height * width,
        groups=attribute(node, "groups"),
        dtype=_TYPES[x.type.tensor_type.elem_type],
        layout="nhwc",
        residual=False,
        relu=False,
        epsilon=attribute(node, "epsilon"),
    )
    return EmbeddedKernels(spec=spec, kernels=compile_kernel(spec, capability))
