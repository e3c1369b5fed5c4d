"""The attention kept as one node, with its compiled kernels, that TensorRT takes for our plugin."""

from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from exporters.editing import attribute
from exporters.functions import DOMAIN, LINEAR_CONTEXT_TRANSFORM
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
_VERSION = "1"


def keep_as_plugins(model: ModelProto, capability: int) -> ModelProto:
    """A copy of a graph whose attention nodes carry kernels for GPUs from `capability` (as 89) on.

    TensorRT looks the plugin up by the node's attributes; any other runtime takes its function.
    Raises ExportError for an attention that has no kernel.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    values = {value.name: value for value in model.graph.value_info}
    for node in attention_nodes(copy):
        kernels = _kernels(node, values[node.input[0]], capability)
        attributes = {
            "plugin_namespace": DOMAIN,
            "plugin_version": _VERSION,
            "kernels": kernels.model_dump_json(),
        }
        node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    return copy


def _kernels(node: NodeProto, x: ValueInfoProto, capability: int) -> EmbeddedKernels:
    if node.op_type != LINEAR_CONTEXT_TRANSFORM:
        raise ExportError(
            f"{node_module(node)}: there is no plugin for {DOMAIN}::{node.op_type}",
            hint="--attention native",
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
