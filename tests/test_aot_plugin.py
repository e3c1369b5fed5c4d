"""The plugin for TensorRT's decorator API, by the Python of TensorRT 11.4 itself: validators and templates.

TensorRT's libraries are not there; its package `tensorrt.plugin` is Python, and takes the types of
TensorRT-RTX, beside a few that RTX lacks. What the libraries do with the answers is for machines with a GPU.
"""

import dataclasses
import importlib.util
import operator
import sys
from collections.abc import Callable, Generator
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lct_deploy.errors import ExportError, RuntimeUnavailableError
from lct_deploy.kernels.gpu.aot import compile_kernel
from lct_deploy.kernels.gpu.embedded import ATTENTION, FIELD, TAIL, EmbeddedKernels
from lct_deploy.kernels.gpu.plugin import register_plugins
from lct_deploy.kernels.gpu.spec import ElementType, KernelSpec
from lct_deploy.runtime.flavours import Flavour, load_flavour

OURS = "lct_deploy.kernels.gpu.aot_plugin"
SPEC = KernelSpec(channels=32, pixels=49, groups=8, dtype="fp32", layout="nhwc")


class Dimension:
    """TensorRT's expression for a dimension: a number for each batch."""

    def __init__(self, value: Callable[[int], int], *, constant: bool = False) -> None:
        self.of, self._constant = value, constant

    def is_constant(self) -> bool:
        return self._constant

    def get_constant_value(self) -> int:
        return self.of(1)


class Expressions:
    """TensorRT's builder of them."""

    def constant(self, value: int) -> Dimension:
        return Dimension(lambda batch: value, constant=True)

    def operation(self, operation: Any, first: Dimension, second: Dimension) -> Dimension:
        compute = {"SUM": operator.add, "PROD": operator.mul}[operation.name]
        return Dimension(lambda batch: compute(first.of(batch), second.of(batch)))


class Registry:
    def __init__(self) -> None:
        self.creators: dict[tuple[str, str, str], Any] = {}

    def register_creator(self, creator: Any, namespace: str) -> bool:
        self.creators[creator.name, creator.plugin_version, namespace] = creator
        return True

    def get_creator(self, name: str, version: str, namespace: str) -> Any:
        return self.creators[name, version, namespace]


def dimensions(length: int) -> list[Dimension | None]:
    return [None] * length


def stand_in(registry: Registry, *, aot: bool = True) -> ModuleType:
    """A module `tensorrt` of RTX's types; without `aot` as it was before 10.9."""
    module = ModuleType("tensorrt")
    vars(module).update(vars(load_flavour("tensorrt-rtx").module))
    module.__name__ = "tensorrt"
    module.__path__ = []
    # RTX has names for some of these, but no constructors.
    classes = ("Core", "Build", "Runtime", "AOTBuild")
    plain = {f"IPluginV3Quick{name}": type(name, (), {}) for name in classes}
    requests = Enum("Request", ["UNKNOWN", "PREFER_AOT", "STRICT_AOT", "PREFER_JIT", "STRICT_JIT"])
    vars(module).update(
        plain,
        IPluginV3=type("IPluginV3", (), {}),
        IPluginCreatorV3Quick=type("IPluginCreatorV3Quick", (), {}),
        IDimensionExpr=Dimension,
        DimsExprs=dimensions,
        ISymExpr=type("ISymExpr", (), {}),
        PluginArgType=Enum("PluginArgType", ["INT"]),
        PluginArgDataType=Enum("PluginArgDataType", ["INT8", "INT16", "INT32"]),
        get_plugin_registry=lambda: registry,
        __version__="11.4.0.106",
    )
    if aot:
        vars(module)["QuickPluginCreationRequest"] = requests
    return module


def load_plugin_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT's own `tensorrt.plugin`, from its bindings' files."""
    found = importlib.util.find_spec("tensorrt_bindings")
    assert found is not None
    assert found.origin is not None
    folder = Path(found.origin).parent / "plugin"
    spec = importlib.util.spec_from_file_location(
        "tensorrt.plugin", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", module)
    vars(sys.modules["tensorrt"])["plugin"] = module
    spec.loader.exec_module(module)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Generator[Registry]:
    registry = Registry()
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in(registry))
    load_plugin_package(monkeypatch)
    yield registry
    forget()


def forget() -> None:
    for name in [name for name in sys.modules if name.startswith("tensorrt.plugin.") or name == OURS]:
        del sys.modules[name]


def flavour() -> Flavour:
    return Flavour(name="tensorrt", version="11.4.0.106", module=sys.modules["tensorrt"])


def embedded(spec: KernelSpec) -> EmbeddedKernels:
    return EmbeddedKernels(spec=spec, kernels=compile_kernel(spec, 90))


def created(registry: Registry, kernels: EmbeddedKernels) -> Any:
    """The plugin as TensorRT's ONNX parser makes it of a node with the attribute `aot`."""
    trt = sys.modules["tensorrt"]
    data = np.frombuffer(kernels.model_dump_json().encode() + b"\0", np.uint8)
    field = SimpleNamespace(name=FIELD, data=data)
    creator = registry.get_creator(kernels.op, "1", "lct")
    phase, request = trt.TensorRTPhase.BUILD, trt.QuickPluginCreationRequest.STRICT_AOT
    return creator.create_plugin(kernels.op, "lct", [field], phase, request)


def descriptions(trt: Any, kernels: EmbeddedKernels) -> list[Any]:
    """The node's tensors as TensorRT describes them, of any batch."""
    image = {"fp32": trt.float32, "fp16": trt.float16, "bf16": trt.bfloat16}[kernels.spec.dtype]
    found: list[Any] = []
    for name in kernels.tensors:
        found.append(trt.DynamicPluginTensorDesc())
        vector = name in ("w", "b")
        found[-1].desc.type = trt.float32 if vector else image
        found[-1].desc.dims = (32,) if vector else (-1, 32, 7, 7)
    return found


def in_order(kernels: EmbeddedKernels, tensors: list[Any], order: str) -> list[tuple[str, str]]:
    names = zip(kernels.tensors, tensors, strict=True)
    return [(t.desc.type.name, "LINEAR" if name in ("w", "b") else order) for name, t in names]


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_tensorrt_is_given_one_kernel_and_its_launch(
    registry: Registry, dtype: ElementType, residual: bool
) -> None:
    register_plugins(flavour())
    spec = dataclasses.replace(SPEC, dtype=dtype, residual=residual, relu=residual)
    kernels = embedded(spec)
    plugin, tensors = created(registry, kernels), descriptions(sys.modules["tensorrt"], kernels)
    build, count = Expressions(), len(tensors) - 1
    sizes = [list(tensor.desc.dims) for tensor in tensors[:-1]]
    shapes = [[Dimension(lambda n: n) if d < 0 else build.constant(d) for d in size] for size in sizes]

    types = [tensor.desc.type for tensor in tensors[:-1]]
    assert plugin.get_output_data_types(types, [len(size) for size in sizes]) == [tensors[-1].desc.type]
    (output,) = plugin.get_output_shapes(shapes, [], build)
    assert [dimension.of(5) for dimension in output] == [5, 32, 7, 7]

    given = plugin.get_supported_format_combinations(tensors, count)
    pairs = [(desc.type.name, desc.format.name) for desc in given]
    orders = ["HWC"] if dtype == "fp32" else ["HWC", "HWC8"]
    assert pairs == [pair for order in orders for pair in in_order(kernels, tensors, order)]

    plugin.set_tactic(0)
    params, scalars = SimpleNamespace(), SimpleNamespace()
    plugin.get_launch_params(shapes, tensors, count, params, scalars, build)
    (kernel,) = kernels.kernels
    names = ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z")
    assert tuple(getattr(params, name).expr.of(5) for name in names) == (
        *kernel.grid(5),
        kernel.threads,
        1,
        1,
    )
    assert params.shared_mem.expr.of(5) == kernel.shared_bytes
    assert scalars.nbSymExprs == 0  # between inputs and output, where the kernel takes no more
    assert kernel.arguments == kernels.tensors
    descs = [tensor.desc for tensor in tensors]
    assert plugin.get_kernel(descs[:-1], descs[-1:]) == (kernel.name, kernel.ptx.encode())


def test_two_kernels_are_not_embedded(registry: Registry) -> None:
    register_plugins(flavour())
    kernels = embedded(dataclasses.replace(SPEC, pixels=200 * 200, groups=4))
    plugin, tensors = created(registry, kernels), descriptions(sys.modules["tensorrt"], kernels)
    plugin.get_output_data_types([t.desc.type for t in tensors[:-1]], [4, 4, 1, 1])
    plugin.get_output_shapes([[Expressions().constant(1)] * 4] * 4, [], Expressions())
    plugin.set_tactic(0)
    with pytest.raises(ExportError, match="no plugin of more than one kernel"):
        plugin.get_launch_params([], tensors, 4, SimpleNamespace(), SimpleNamespace(), Expressions())


def test_both_operators_are_defined_once(registry: Registry) -> None:
    here = flavour()
    register_plugins(here)
    register_plugins(here)
    assert set(registry.creators) == {(ATTENTION, "1", "lct"), (TAIL, "1", "lct")}


def test_a_tensorrt_before_aot_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in(Registry(), aot=False))
    load_plugin_package(monkeypatch)
    monkeypatch.delattr(sys.modules["tensorrt.plugin"], "aot_impl")
    try:
        with pytest.raises(RuntimeUnavailableError, match=r"TensorRT 11\.4\.0\.106 cannot copy") as raised:
            register_plugins(flavour())
        assert raised.value.hint == "pip install -U 'tensorrt>=10.9', or --attention native"
    finally:
        forget()
