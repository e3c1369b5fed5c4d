# pyright: basic
# TensorRT-RTX annotates nothing, and calls the plugin's methods with its own types.
"""The attention as class plugins of TensorRT-RTX, which has no other kind: enqueue launches the kernels.

An engine holds the kernels and asks for the creator again when it is opened.
"""

import numpy as np

from lct_deploy.errors import BundleError, RuntimeUnavailableError
from lct_deploy.kernels.gpu.embedded import (
    FIELD,
    NAMESPACE,
    VERSION,
    WORKSPACE,
    EmbeddedKernels,
    read_kernels,
)
from lct_deploy.kernels.gpu.launch import Launcher
from lct_deploy.runtime.flavours import load_flavour

trt = load_flavour("tensorrt-rtx").module

# Channels last. bfloat16 is not among them: in this order of it, RTX 1.7.1 overwrites its own heap.
_TYPES = {"fp32": trt.DataType.FLOAT, "fp16": trt.DataType.HALF}
_ORDER = trt.TensorFormat.HWC
_VECTOR = (trt.DataType.FLOAT, trt.TensorFormat.LINEAR)

_launcher = Launcher()


class AttentionPlugin(trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):
    """One attention. Its only state is its kernels, which its copies share."""

    def __init__(self, embedded: EmbeddedKernels) -> None:
        trt.IPluginV3.__init__(self)
        trt.IPluginV3OneCore.__init__(self)
        trt.IPluginV3OneBuild.__init__(self)
        trt.IPluginV3OneRuntime.__init__(self)
        self.plugin_namespace, self.plugin_version = NAMESPACE, VERSION
        self.plugin_name = embedded.op
        self.num_outputs = 1
        self.embedded = embedded
        self._text = np.frombuffer(embedded.model_dump_json().encode(), np.uint8)  # fields point into it

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
        wanted = _VECTOR if is_vector else (_TYPES[self.embedded.spec.dtype], _ORDER)
        return (desc.type, desc.format) == wanted

    def configure_plugin(self, inputs, outputs):
        _check(self.embedded, inputs[0].desc.dims)

    def on_shape_change(self, inputs, outputs):
        _check(self.embedded, inputs[0].dims)

    def get_workspace_size(self, inputs, outputs):
        return self.embedded.workspace_bytes(inputs[0].max[0])

    def get_fields_to_serialize(self):
        return trt.PluginFieldCollection([trt.PluginField(FIELD, self._text, trt.PluginFieldType.CHAR)])

    def attach_to_context(self, context):
        for kernel in self.embedded.kernels:
            _launcher.load(kernel)  # RTX captures an inference as a graph, and loading is not for graphs
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

    def __init__(self, op: str) -> None:
        trt.IPluginCreatorV3One.__init__(self)
        self.plugin_namespace, self.plugin_version = NAMESPACE, VERSION
        self.name = op
        empty = trt.PluginField(FIELD, np.empty(0, np.uint8), trt.PluginFieldType.CHAR)
        self.field_names = trt.PluginFieldCollection([empty])

    def create_plugin(self, name, fields, phase):
        texts = [bytes(field.data).decode() for field in fields if field.name == FIELD]
        if not texts:
            raise BundleError(f"{name}: the node has no kernels", hint="compile it with --attention plugin")
        embedded = read_kernels(texts[0], self.name)
        if embedded.spec.dtype not in _TYPES:
            raise BundleError(f"{name}: TensorRT-RTX has no plugins on {embedded.spec.dtype} tensors")
        return AttentionPlugin(embedded)


def _check(embedded: EmbeddedKernels, shape) -> None:
    """Raise BundleError for an X that the kernels were not compiled for."""
    spec = embedded.spec
    _, channels, height, width = shape
    if (channels, height * width) != (spec.channels, spec.pixels):
        raise BundleError(
            f"the attention's kernels are for {spec.channels} channels × {spec.pixels} pixels, "
            f"its X has {channels} × {height * width}",
            hint="compile the engine again",
        )


_creators: list[AttentionCreator] = []  # the registry does not own them


def register(ops: tuple[str, ...]) -> None:
    """Add a creator for each operator to RTX's registry."""
    for op in ops:
        _creators.append(AttentionCreator(op))
        if not trt.get_plugin_registry().register_creator(_creators[-1], NAMESPACE):
            raise RuntimeUnavailableError(f"TensorRT-RTX {trt.__version__} refuses the plugin {op}")
