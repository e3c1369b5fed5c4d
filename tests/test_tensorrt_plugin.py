"""The attention as a TensorRT plugin: its graph, RTX's class and engines, how its kernels are launched."""

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from cuda.bindings import driver  # pyright: ignore[reportAttributeAccessIssue] - no stubs
from cuda.bindings import runtime as cudart  # pyright: ignore[reportAttributeAccessIssue] - no stubs
from onnx import ModelProto

from exporters.editing import attribute
from exporters.functions import ATTENTION_TAIL, DOMAIN, LINEAR_CONTEXT_TRANSFORM, SQUEEZE_EXCITATION
from exporters.graph import export_graph
from exporters.half import to_half
from exporters.nodes import attention_nodes, node_module
from exporters.quantization.calibration import Calibration
from exporters.quantization.histogram import Range
from exporters.quantization.placement import placement
from exporters.quantization.qdq import quantize
from exporters.quantization.stem import cast_first
from exporters.spelling import spell_out
from exporters.tensorrt.build import BuiltEngine, build_engine
from exporters.tensorrt.options import BuildOptions
from exporters.tensorrt.plugin import with_plugins
from lct_deploy.architecture import model_config
from lct_deploy.errors import BundleError, DeviceError, ExportError, LctDeployError
from lct_deploy.kernels.gpu import launch
from lct_deploy.kernels.gpu.aot import CAPABILITIES, compile_kernel
from lct_deploy.kernels.gpu.embedded import ATTENTION, FIELD, TAIL, EmbeddedKernels, read_kernels
from lct_deploy.kernels.gpu.plugin import register_plugins
from lct_deploy.kernels.gpu.rtx_plugin import AttentionCreator
from lct_deploy.kernels.gpu.spec import ElementType, KernelSpec
from lct_deploy.manifest import Precision
from lct_deploy.preprocessing import Preprocessing
from lct_deploy.runtime.flavours import Flavour, gpu_capability, load_flavour
from tests.attention_tail import Case, check, random_case
from tests.conftest import random_network

LAYERS_OF_RESNET50 = 74  # 53 convolutions, 16 plugins, pooling, mean, classifier, image, shapes
SMALL = KernelSpec(channels=32, pixels=49, groups=8, dtype="fp32", layout="nhwc")
TWO_KERNELS = KernelSpec(channels=16, pixels=200 * 200, groups=4, dtype="fp32", layout="nhwc")


@pytest.fixture(scope="module")
def rtx() -> Flavour:
    flavour = load_flavour("tensorrt-rtx")
    register_plugins(flavour)
    return flavour


@cache
def portable(arch: str, size: int = 32) -> ModelProto:
    network = random_network(model_config(arch, num_classes=10))
    return export_graph(network, Preprocessing(resize=size, crop=size), metadata={}).model


@cache
def spelled(arch: str, precision: Precision = "fp32", size: int = 32) -> ModelProto:
    model = portable(arch, size)
    if precision == "int8":
        places = placement(cast_first(model).graph, "tensorrt")
        known = Calibration(ranges=dict.fromkeys(places.values(), Range(-4.0, 4.0)), means={})
        return spell_out(quantize(model, known, "tensorrt"))
    if precision in ("fp16", "bf16"):
        return spell_out(to_half(model, precision))
    return spell_out(cast_first(model))


@cache
def plugged(arch: str, precision: Precision = "fp32", size: int = 32, capability: int = 89) -> ModelProto:
    return with_plugins(
        spelled(arch, precision, size), portable(arch, size), capability, flavour="tensorrt-rtx"
    )


def build(model: ModelProto, flavour: Flavour, precision: Precision = "fp32", **options: Any) -> BuiltEngine:
    chosen = BuildOptions(precision=precision, gpus=("sm89",), attention="plugin", **options)
    return build_engine(model, chosen, flavour=flavour, announce=lambda _: None)


def embedded(spec: KernelSpec = SMALL, capability: int = 80) -> EmbeddedKernels:
    return EmbeddedKernels(spec=spec, kernels=compile_kernel(spec, capability))


def copied(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def run(model: ModelProto, count: int = 4, size: int = 32) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"image": images})[0])


# The graph


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_onnxruntime_gives_the_same_answers_for_the_plugins_graph(precision: Precision) -> None:
    model = plugged("lct_resnet20", precision)
    onnx.checker.check_model(model, full_check=True)
    reference = run(spelled("lct_resnet20", precision))
    assert np.ptp(reference) > 0.1
    limit = {"fp32": 1e-5, "fp16": 5e-3, "int8": 2e-2}[precision]
    assert np.abs(run(model) - reference).max() <= limit * np.abs(reference).max()


def test_the_functions_of_the_plugins_graph_use_w_and_b() -> None:
    model = copied(plugged("lct_resnet20"))
    reference = run(model)
    for node in attention_nodes(model):
        w, b = node.input[-2:]
        node.input[-2], node.input[-1] = b, w
    assert np.abs(run(model) - reference).max() > 0.01 * np.abs(reference).max()


def test_a_block_whose_own_input_is_added_is_one_node() -> None:
    model = plugged("lct_resnet20")
    alone, tail = LINEAR_CONTEXT_TRANSFORM, ATTENTION_TAIL
    # The first blocks of the later stages add what their downsampling convolution makes.
    blocks = [tail, tail, tail, alone, tail, tail, alone, tail, tail]
    assert [node.op_type for node in attention_nodes(model)] == blocks
    assert sum(node.op_type == "Add" for node in model.graph.node) == 2
    assert {function.name for function in model.functions} == {LINEAR_CONTEXT_TRANSFORM, ATTENTION_TAIL}


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "fp32"), ("fp16", "fp16"), ("int8", "fp32")])
def test_a_node_carries_kernels_for_its_tensor(precision: Precision, dtype: ElementType) -> None:
    for node in attention_nodes(plugged("lct_resnet20", precision)):
        read = read_kernels(attribute(node, FIELD).decode(), node.op_type)
        assert read.spec.dtype == dtype
        assert read.spec.layout == "nhwc"
        assert (read.spec.groups, read.spec.epsilon) == (
            attribute(node, "groups"),
            attribute(node, "epsilon"),
        )
        assert {kernel.capability for kernel in read.kernels} == {89}
        assert (attribute(node, "plugin_namespace"), attribute(node, "plugin_version")) == (b"lct", b"1")


def test_attention_without_a_plugin_is_refused_by_its_layer() -> None:
    given = copied(portable("lct_resnet20"))
    attention_nodes(given)[4].op_type = SQUEEZE_EXCITATION
    with pytest.raises(ExportError, match=r"layer2\.1\.attn: there is no plugin for lct::Squ") as raised:
        with_plugins(spelled("lct_resnet20"), given, 89, flavour="tensorrt-rtx")
    assert raised.value.hint == "--attention native"


def test_a_network_without_attention_is_refused() -> None:
    given = copied(portable("lct_resnet20"))
    nodes = [node for node in given.graph.node if node.domain != DOMAIN]
    del given.graph.node[:]
    given.graph.node.extend(nodes)
    with pytest.raises(ExportError, match="no attention node"):
        with_plugins(spelled("lct_resnet20"), given, 89, flavour="tensorrt-rtx")


def test_bf16_is_refused_by_rtx_and_taken_by_tensorrt() -> None:
    graphs = spelled("lct_resnet20", "bf16"), portable("lct_resnet20")
    with pytest.raises(ExportError, match=r"layer1\.0\.attn: TensorRT-RTX has no plugins on bf16") as raised:
        with_plugins(*graphs, 89, flavour="tensorrt-rtx")
    assert raised.value.hint == "--precision fp16, or --attention native"
    (first, *_) = attention_nodes(with_plugins(*graphs, 90, flavour="tensorrt"))
    assert read_kernels(attribute(first, FIELD).decode(), first.op_type).spec.dtype == "bf16"


def test_two_kernels_are_refused_by_tensorrt_and_taken_by_rtx(rtx: Flavour) -> None:
    graphs = spelled("lct_resnet20", size=200), portable("lct_resnet20", 200)
    with pytest.raises(ExportError, match=r"layer1\.0\.attn: 4 channels × 40000 pixels of a group"):
        with_plugins(*graphs, 89, flavour="tensorrt")
    assert build(plugged("lct_resnet20", size=200), rtx).layers


def test_a_graph_whose_attention_is_not_the_portable_ones_is_refused() -> None:
    other = copied(spelled("lct_resnet20"))
    for node in other.graph.node:
        if node_module(node) == "layer3.0.attn":
            del node.metadata_props[:]
    with pytest.raises(ExportError, match=r"layer3\.0\.attn: its attention is not found"):
        with_plugins(other, portable("lct_resnet20"), 89, flavour="tensorrt-rtx")


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_kernels_may_run_on_later_gpus(capability: int) -> None:
    (kernel,) = compile_kernel(SMALL, capability)
    assert f"\n.target sm_{capability}\n" in kernel.ptx  # and not sm_90a or sm_120a, which are for one alone
    assert "\n.version 8.7\n" in kernel.ptx


# Engines


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_lct_resnet50_has_a_layer_for_each_convolution_and_plugin(rtx: Flavour, precision: Precision) -> None:
    layers = build(plugged("lct_resnet50", precision, 224), rtx, precision).layers
    assert len(layers) <= LAYERS_OF_RESNET50
    assert sum(layer.kind == "custom_layer" for layer in layers) == 16
    assert not [layer.name for layer in layers if layer.transposes]


def test_int8_builds_with_the_plugin(rtx: Flavour) -> None:
    layers = build(plugged("lct_resnet20", "int8"), rtx, "int8").layers
    assert sum(layer.kind == "custom_layer" for layer in layers) == 9


def test_an_engine_holds_its_kernels(rtx: Flavour) -> None:
    model = plugged("lct_resnet20")
    (node, *_) = attention_nodes(model)
    kernel = read_kernels(attribute(node, FIELD).decode(), node.op_type).kernels[0]
    assert json.dumps(kernel.ptx).strip('"').encode() in build(model, rtx).engine


def test_a_node_whose_plugin_is_not_registered_is_not_inlined(rtx: Flavour) -> None:
    model = copied(plugged("lct_resnet20"))
    for node in attention_nodes(model):
        next(a for a in node.attribute if a.name == "plugin_version").s = b"2"
    with pytest.raises(ExportError, match="TensorRT cannot take this graph"):
        build(model, rtx)


# RTX's class


def create(rtx: Flavour, op: str, text: str, name: str = FIELD) -> Any:
    """A plugin from one field, as RTX's parser makes it: its strings end with a zero."""
    trt, data = rtx.module, np.frombuffer(text.encode() + b"\0", np.uint8)  # the field only points to it
    fields = trt.PluginFieldCollection([trt.PluginField(name, data, trt.PluginFieldType.CHAR)])
    return AttentionCreator(op).create_plugin("node", fields, trt.TensorRTPhase.BUILD)


def created(rtx: Flavour, spec: KernelSpec) -> Any:
    kernels = embedded(spec)
    return create(rtx, kernels.op, kernels.model_dump_json())


@pytest.mark.parametrize("residual", [False, True])
def test_a_plugin_survives_serialization(rtx: Flavour, residual: bool) -> None:
    trt = rtx.module
    plugin = created(rtx, dataclasses.replace(SMALL, residual=residual, relu=residual))
    name, copy = TAIL if residual else ATTENTION, plugin.clone()
    registered = trt.get_plugin_registry().get_creator(name, "1", "lct")
    fields = copy.get_fields_to_serialize()
    again = registered.create_plugin("node", fields, trt.TensorRTPhase.RUNTIME)
    assert again.embedded == plugin.embedded
    assert (again.plugin_name, again.plugin_namespace, again.plugin_version) == (name, "lct", "1")


def test_registering_twice_changes_nothing(rtx: Flavour) -> None:
    before = [c.name for c in rtx.module.get_plugin_registry().all_creators]
    register_plugins(rtx)
    assert [c.name for c in rtx.module.get_plugin_registry().all_creators] == before


def change(**values: Any) -> str:
    document = json.loads(embedded().model_dump_json())
    document["spec"].update(values)
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (change(groups=5), "32 channels do not divide into 5 groups"),
        (change(dtype="int8"), "the kernels of AttentionTail cannot be read: spec.dtype"),
        (change(layout="nchw"), "the kernels of AttentionTail are for nchw, not nhwc"),
        (change(residual=False), "the kernels of AttentionTail are for LinearContextTransform(b, identity, "),
        (change(dtype="bf16"), "TensorRT-RTX has no plugins on bf16 tensors"),
        ('{"spec": ', "the kernels of AttentionTail cannot be read: text: "),
        (change().replace('"y"', '"z"'), "the kernels of AttentionTail are for AttentionTail(b, identity, "),
    ],
)
def test_fields_that_no_plugin_can_have_are_refused(rtx: Flavour, text: str, complaint: str) -> None:
    with pytest.raises(LctDeployError) as raised:
        create(rtx, TAIL, text)
    assert complaint in str(raised.value)


def test_a_node_without_kernels_is_refused(rtx: Flavour) -> None:
    with pytest.raises(BundleError, match="the node has no kernels"):
        create(rtx, TAIL, "64", "groups")


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_images_are_taken_channels_last_and_parameters_in_float32(rtx: Flavour, dtype: ElementType) -> None:
    trt = rtx.module
    plugin = created(rtx, dataclasses.replace(SMALL, dtype=dtype))
    image = {"fp32": trt.float32, "fp16": trt.float16}[dtype]

    def accepted(position: int) -> set[tuple[Any, Any]]:
        kinds = [
            (t, f) for t in trt.DataType.__members__.values() for f in trt.TensorFormat.__members__.values()
        ]
        return {kind for kind in kinds if supports(*kind, position)}

    def supports(kind: Any, order: Any, position: int) -> bool:
        tensor = SimpleNamespace(desc=SimpleNamespace(type=kind, format=order))
        return plugin.supports_format_combination(position, [tensor] * 5, 4)

    last, vector = (image, trt.TensorFormat.HWC), (trt.float32, trt.TensorFormat.LINEAR)
    assert [accepted(position) for position in range(5)] == [{last}, {last}, {vector}, {vector}, {last}]
    assert plugin.get_output_data_types([image, image, trt.float32, trt.float32]) == [image]


def test_another_shape_than_the_kernels_is_refused(rtx: Flavour) -> None:
    plugin = created(rtx, SMALL)
    plugin.on_shape_change([SimpleNamespace(dims=(3, 32, 7, 7))], [])
    for shape in ((3, 32, 7, 8), (3, 64, 7, 7)):
        with pytest.raises(BundleError, match="kernels are for 32 channels × 49 pixels"):
            plugin.on_shape_change([SimpleNamespace(dims=shape)], [])
        with pytest.raises(BundleError, match="compile the engine again"):
            plugin.configure_plugin([SimpleNamespace(desc=SimpleNamespace(dims=shape))], [])


def test_the_workspace_is_that_of_the_largest_batch(rtx: Flavour) -> None:
    inputs = [SimpleNamespace(max=(8, 16, 200, 200))]
    kernels = compile_kernel(TWO_KERNELS, 80)
    assert created(rtx, TWO_KERNELS).get_workspace_size(inputs, []) == kernels[0].workspace_bytes(8) > 0
    assert created(rtx, SMALL).get_workspace_size(inputs, []) == 0


# Launching


class Driver:
    """CUDA's driver, where there is none: notes what it is asked for. Enumerations are its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.context, self.status = 7, driver.CUresult.CUDA_SUCCESS
        self.loaded: list[bytes] = []
        self.launches: list[tuple[Any, ...]] = []
        self.attributes: list[tuple[Any, ...]] = []
        monkeypatch.setattr(launch, "driver", self)

    def __getattr__(self, name: str) -> Any:
        return getattr(driver, name)

    def cuCtxGetCurrent(self) -> tuple[Any, int]:  # noqa: N802
        return self.status, self.context

    def cuModuleLoadData(self, ptx: bytes) -> tuple[Any, int]:  # noqa: N802
        self.loaded.append(ptx)
        return self.status, len(self.loaded)

    def cuModuleGetFunction(self, module: int, name: bytes) -> tuple[Any, Any]:  # noqa: N802
        assert b".entry " + name + b"(" in self.loaded[module - 1]
        return self.status, (module, name)

    def cuFuncSetAttribute(self, *arguments: Any) -> tuple[Any]:  # noqa: N802
        self.attributes.append(arguments)
        return (self.status,)

    def cuLaunchKernel(self, *arguments: Any) -> tuple[Any]:  # noqa: N802
        self.launches.append(arguments)
        return (self.status,)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Driver:
    return Driver(monkeypatch)


def enqueue(plugin: Any, samples: int = 3) -> None:
    inputs = {"x": 0x10, "identity": 0x20, "w": 0x30, "b": 0x40}
    given = [inputs[name] for name in plugin.embedded.tensors[:-1]]
    plugin.enqueue([SimpleNamespace(dims=(samples, 0, 0, 0))], [], given, [0x50], 0x60, 99)


def test_enqueue_launches_a_kernel_with_its_pointers_in_order(rtx: Flavour, fake: Driver) -> None:
    for residual, pointers in ((True, (0x10, 0x20, 0x30, 0x40, 0x50)), (False, (0x10, 0x30, 0x40, 0x50))):
        plugin = created(rtx, dataclasses.replace(SMALL, residual=residual, relu=residual))
        enqueue(plugin)
        (kernel,) = plugin.embedded.kernels
        function, *grid_and_block, shared, stream, (values, types), extra = fake.launches[-1]
        assert function == (len(fake.loaded), kernel.name.encode())
        assert fake.loaded[-1] == kernel.ptx.encode() + b"\0"
        assert grid_and_block == [3 * kernel.programs_per_sample, 1, 1, kernel.threads, 1, 1]
        assert (shared, stream, extra) == (kernel.shared_bytes, 99, 0)
        assert values == pointers
        assert len(types) == len(values)


def test_kernels_are_loaded_before_a_graph_can_be_captured(rtx: Flavour, fake: Driver) -> None:
    fake.context = 17
    plugin = created(rtx, TWO_KERNELS).attach_to_context(None)
    assert plugin.embedded.spec == TWO_KERNELS
    assert len(fake.loaded) == 2
    enqueue(plugin)
    assert (len(fake.loaded), len(fake.launches)) == (2, 2)


def test_enqueue_launches_both_passes_on_one_workspace(rtx: Flavour, fake: Driver) -> None:
    enqueue(created(rtx, TWO_KERNELS))
    assert [arguments[-2][0] for arguments in fake.launches] == [
        (0x10, 0x60),
        (0x10, 0x20, 0x30, 0x40, 0x60, 0x50),
    ]


def test_a_kernel_is_loaded_once_in_a_context_by_whichever_thread(fake: Driver) -> None:
    launcher = launch.Launcher()
    (kernel,) = compile_kernel(SMALL, 80)
    pointers = dict.fromkeys(kernel.arguments, 1)
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(launcher.launch, kernel, pointers, samples=1, stream=1) for _ in range(64)]
    assert [call.result() for call in calls] == [None] * 64
    assert (len(fake.loaded), len(fake.launches)) == (1, 64)
    fake.context = 8
    launcher.launch(kernel, pointers, samples=1, stream=1)
    assert len(fake.loaded) == 2


def test_more_shared_memory_than_the_default_is_asked_for(fake: Driver) -> None:
    (kernel,) = compile_kernel(SMALL, 80)
    large = dataclasses.replace(kernel, shared_bytes=60 * 1024)
    for wanted in (kernel, large):
        launch.Launcher().launch(wanted, dict.fromkeys(kernel.arguments, 1), samples=1, stream=1)
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    assert [rest for _, *rest in fake.attributes] == [[attribute, 60 * 1024]]


def test_what_cuda_refuses_is_an_error_by_its_name(rtx: Flavour, fake: Driver) -> None:
    plugin = created(rtx, dataclasses.replace(SMALL, epsilon=1e-4))
    enqueue(plugin)
    fake.status = driver.CUresult.CUDA_ERROR_NO_BINARY_FOR_GPU
    fake.context = 9
    with pytest.raises(DeviceError, match="CUDA_ERROR_NO_BINARY_FOR_GPU"):
        enqueue(plugin)


@pytest.mark.gpu
@pytest.mark.skipif(gpu_capability() is None, reason="no NVIDIA GPU, driver or cuda-bindings here")
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("spec", [SMALL, dataclasses.replace(SMALL, dtype="fp16"), TWO_KERNELS])
def test_on_a_gpu_what_is_launched_computes_the_attention(spec: KernelSpec, residual: bool) -> None:
    spec = dataclasses.replace(spec, residual=residual, relu=residual)
    here = int((gpu_capability() or "").removeprefix("sm"))
    kernels = embedded(spec, max(known for known in CAPABILITIES if known <= here))
    case = random_case(spec, samples=3)
    check(case, launched(case, kernels), interpreted=False)


def launched(case: Case, kernels: EmbeddedKernels) -> torch.Tensor:
    """Y of a case, by the kernels as text and CUDA's driver alone."""
    workspace = torch.zeros(max(1, kernels.workspace_bytes(case.samples)), dtype=torch.uint8)
    y = torch.full_like(case.tensors["x"], float("nan"))
    host = {**case.tensors, "y": y, "partials": workspace}
    device: dict[str, int] = {}
    for name, tensor in host.items():
        status, device[name] = cudart.cudaMalloc(tensor.nbytes)
        assert status == 0
        kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        assert cudart.cudaMemcpy(device[name], tensor.data_ptr(), tensor.nbytes, kind) == (0,)
    launcher = launch.Launcher()
    for kernel in read_kernels(kernels.model_dump_json(), kernels.op).kernels:
        launcher.launch(kernel, device, samples=case.samples, stream=0)
    assert cudart.cudaDeviceSynchronize() == (0,)
    kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
    assert cudart.cudaMemcpy(y.data_ptr(), device["y"], y.nbytes, kind) == (0,)
    for pointer in device.values():
        cudart.cudaFree(pointer)
    return y
