# pyright: basic
# TensorRT-RTX annotates nothing; the plugin's methods are called by it, with its types.
"""The attention as a class plugin of TensorRT-RTX, whose enqueue launches the embedded kernels.

RTX has no other kind. An engine that holds it asks for the creator again when it is opened.
"""

import numpy as np
import tensorrt_rtx as trt

from lct_deploy.errors import BundleError
from lct_deploy.kernels.gpu.embedded import WORKSPACE, EmbeddedKernels, read_kernels
from lct_deploy.kernels.gpu.launch import Launcher

NAMESPACE, NAME, VERSION = "lct", "LinearContextTransform", "1"
FIELD = "kernels"

# (N, H, W, C) in memory: the plain format is for float32 alone; that of halves pads C to eight.
_TENSORS = {
    "fp32": (trt.DataType.FLOAT, trt.TensorFormat.HWC),
    "fp16": (trt.DataType.HALF, trt.TensorFormat.HWC8),
    "bf16": (trt.DataType.BF16, trt.TensorFormat.HWC8),
}
_VECTOR = (trt.DataType.FLOAT, trt.TensorFormat.LINEAR)

_launcher = Launcher()


class AttentionPlugin(trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):
    """One attention. Its only state is its kernels, so that copies may share them."""

    def __init__(self, embedded: EmbeddedKernels) -> None:
        trt.IPluginV3.__init__(self)
        trt.IPluginV3OneCore.__init__(self)
        trt.IPluginV3OneBuild.__init__(self)
        trt.IPluginV3OneRuntime.__init__(self)
        self.plugin_namespace, self.plugin_name, self.plugin_version = NAMESPACE, NAME, VERSION
        self.num_outputs = 1
        self.embedded = embedded

    def get_capability_interface(self, type):
        return self

    def clone(self):
        return AttentionPlugin(self.embedded)

    def get_output_data_types(self, input_types):
        return [input_types[0]]

    def get_output_shapes(self, inputs, shape_inputs, expression_builder):
        return [trt.DimsExprs(inputs[0])]

    def supports_format_combination(self, position, tensors, inputs):
        desc = tensors[position].desc
        is_vector = self.embedded.tensors[position] in ("w", "b")
        wanted = _VECTOR if is_vector else _TENSORS[self.embedded.spec.dtype]
        return (desc.type, desc.format) == wanted

    def configure_plugin(self, inputs, outputs):
        _check(self.embedded, tuple(inputs[0].desc.dims))

    def on_shape_change(self, inputs, outputs):
        _check(self.embedded, tuple(inputs[0].dims))

    def get_workspace_size(self, inputs, outputs):
        return self.embedded.workspace_bytes(inputs[0].max[0])

    def get_fields_to_serialize(self):
        text = np.frombuffer(self.embedded.model_dump_json().encode(), np.uint8)
        return trt.PluginFieldCollection([trt.PluginField(FIELD, text, trt.PluginFieldType.CHAR)])

    def attach_to_context(self, context):
        return self.clone()

    def set_tactic(self, tactic):
        pass

    def enqueue(self, input_desc, output_desc, inputs, outputs, workspace, stream):
        pointers = dict(zip(self.embedded.tensors, (*inputs, *outputs), strict=True))
        pointers[WORKSPACE] = workspace
        for kernel in self.embedded.kernels:
            _launcher.launch(kernel, pointers, samples=input_desc[0].dims[0], stream=stream)


class AttentionCreator(trt.IPluginCreatorV3One):
    """From a node's attributes or an engine's fields to the plugin."""

    def __init__(self) -> None:
        trt.IPluginCreatorV3One.__init__(self)
        self.plugin_namespace, self.name, self.plugin_version = NAMESPACE, NAME, VERSION
        empty = trt.PluginField(FIELD, np.empty(0, np.uint8), trt.PluginFieldType.CHAR)
        self.field_names = trt.PluginFieldCollection([empty])

    def create_plugin(self, name, fields, phase):
        texts = [bytes(field.data) for field in fields if field.name == FIELD]
        if not texts:
            raise BundleError(f"{name}: the node has no kernels", hint="compile it with --attention plugin")
        return AttentionPlugin(read_kernels(texts[0].decode().rstrip("\0")))


def _check(embedded: EmbeddedKernels, shape: tuple[int, ...]) -> None:
    """Raise BundleError for an X that the kernels were not compiled for."""
    spec = embedded.spec
    _, channels, height, width = shape
    if (channels, height * width) != (spec.channels, spec.pixels):
        raise BundleError(
            f"the attention's kernels are for {spec.channels} channels × {spec.pixels} pixels, "
            f"its X has {channels} × {height * width}",
            hint="compile the engine again",
        )


_creator = AttentionCreator()


def register() -> None:
    """Add the creator to the registry, which does not own it."""
    trt.get_plugin_registry().register_creator(_creator, NAMESPACE)
