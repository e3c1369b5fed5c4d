"""The parts that engines are built with: flavours, options, keys, progress, layers, messages."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from onnx import ModelProto

from exporters.tensorrt.cache import Place, build_key
from exporters.tensorrt.features import check_flags, rtx_gpus, target_gpus
from exporters.tensorrt.layers import EngineLayer, EngineTensor, layers_of_inspector, of_profile, summarize
from exporters.tensorrt.messages import build_error
from exporters.tensorrt.options import BuildOptions, parse_gpus, parse_profiles
from exporters.tensorrt.progress import Phases
from lct_deploy.errors import RuntimeUnavailableError, UsageError
from lct_deploy.runtime import flavours
from lct_deploy.runtime.flavours import Flavour, driver_version, load_flavour
from lct_deploy.runtime.trt_log import Messages

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def rtx() -> Flavour:
    return load_flavour("tensorrt-rtx")


def test_without_gpus_named_all_that_know_the_precision_are_built_for(rtx: Flavour) -> None:
    assert target_gpus(BuildOptions(), rtx, None) == ("sm80", "sm86", "sm89", "sm120")
    assert target_gpus(BuildOptions(precision="fp8"), rtx, None) == ("sm89", "sm120")
    assert target_gpus(BuildOptions(), rtx, "sm86") == ("sm86",)
    assert target_gpus(BuildOptions(), rtx, "sm90") == ("sm80", "sm86", "sm89", "sm120")


def test_tensorrt_without_a_gpu_says_what_builds_without_one() -> None:
    trt = Flavour(name="tensorrt", version="11.4.0.106", module=None)
    check_flags(BuildOptions(version_compatible=True, hardware_compatible=True), "tensorrt")
    with pytest.raises(RuntimeUnavailableError, match="--runtime tensorrt-rtx"):
        target_gpus(BuildOptions(), trt, None)
    assert target_gpus(BuildOptions(precision="fp8"), trt, "sm90") == ("sm90",)
    with pytest.raises(UsageError, match="sm80 cannot compute in fp8"):
        target_gpus(BuildOptions(precision="fp8"), trt, "sm80")


def test_what_can_change_an_engine_changes_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    options = BuildOptions(timing_cache=cache)
    trt = Flavour(name="tensorrt", version="11.4.0.106", module=None)
    place = Place(gpu="sm90", device="NVIDIA H100", driver="580.95.05")

    def key(graph: str = "a", flavour: Flavour = trt, place: Place = place, **changed: Any) -> str:
        return build_key(graph, options.model_copy(update=changed), flavour=flavour, place=place)

    same = key()
    assert key() == same
    keys = [
        same,
        key(graph="b"),
        key(flavour=Flavour(name="tensorrt", version="11.5.0.1", module=None)),
        key(flavour=Flavour(name="tensorrt-rtx", version="11.4.0.106", module=None)),
        key(place=Place(gpu="sm90", device="NVIDIA H200", driver="580.95.05")),
        key(place=Place(gpu="sm90", device="NVIDIA H100", driver="590.1")),
        key(precision="tf32"),
        key(profiles=parse_profiles("1,2:4:8")),
        key(gpus=("sm90",)),
        key(attention="plugin"),
        key(opt_level=3),
        key(version_compatible=True),
        key(hardware_compatible=True),
        key(timing_cache=None),
    ]
    for content in (b"", b"times"):
        cache.write_bytes(content)
        keys.append(key())
    monkeypatch.setattr("exporters.tensorrt.cache.__version__", "99")
    assert len({*keys, key()}) == len(keys) + 1
    with pytest.raises(UsageError, match=r"mem: cannot be read"):
        key(timing_cache=Path("/proc/self/mem"))


def test_an_rtx_engine_does_not_depend_on_where_it_is_built() -> None:
    rtx = Flavour(name="tensorrt-rtx", version="1", module=None)
    place = Place(gpu=None, device=None, driver=None)
    other = Place(gpu="sm89", device="NVIDIA L4", driver="580.1")
    assert build_key("a", BuildOptions(), flavour=rtx, place=place) == build_key(
        "a", BuildOptions(), flavour=rtx, place=other
    )


def test_rtx_parses_a_plugin_that_its_wheel_alone_aborts_at(tmp_path: Path) -> None:
    """The library that the parser looks for by another name; in a process of its own, as it may abort."""
    script = tmp_path / "parse.py"
    script.write_text(PLUGIN)
    run = (sys.executable, str(script))
    done = subprocess.run(run, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "True 2\n"), done.stderr


PLUGIN = textwrap.dedent(
    """
    import sys
    sys.path.insert(0, ".")
    from onnx import TensorProto, helper
    from lct_deploy.runtime.flavours import load_flavour

    trt = load_flavour("tensorrt-rtx").module
    NAME = "LinearContextTransform"

    class Plugin(trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild):
        def __init__(self):
            for base in Plugin.__bases__:
                base.__init__(self)
            self.num_outputs, self.plugin_name = 1, NAME
            self.plugin_namespace, self.plugin_version = "lct", "1"

        def get_capability_interface(self, kind):
            return self

        def get_output_data_types(self, types):
            return types[:1]

        def get_output_shapes(self, inputs, shapes, builder):
            return [trt.DimsExprs(inputs[0])]

        def clone(self):
            return Plugin()

    class Creator(trt.IPluginCreatorV3One):
        def __init__(self):
            trt.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_namespace, self.plugin_version = NAME, "lct", "1"
            self.field_names = trt.PluginFieldCollection([])

        def create_plugin(self, name, fields, phase):
            return Plugin()

    creator = Creator()
    trt.get_plugin_registry().register_creator(creator, "lct")
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 8, 4, 4]) for n in "xy")
    attributes = {"plugin_namespace": "lct", "plugin_version": "1"}
    w = helper.make_tensor("w", TensorProto.FLOAT, [8], [1.0] * 8)
    node = helper.make_node(NAME, ["x", "w"], ["y"], domain="lct", **attributes)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("lct", 1)]
    graph = helper.make_graph([node], "g", [x], [y], [w])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    print(parser.parse(model.SerializeToString()), network.num_layers)
    """
)


def test_the_links_are_gone_when_the_process_ends(tmp_path: Path) -> None:
    code = "from lct_deploy.runtime.flavours import load_flavour; load_flavour('tensorrt-rtx')"
    environment = {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=120)
    assert list(tmp_path.iterdir()) == []


def test_gpus_are_those_of_this_rtx(rtx: Flavour) -> None:
    assert rtx_gpus(rtx) == ["sm75", "sm80", "sm86", "sm89", "sm120", "sm121"]
    assert parse_gpus("SM120, sm89,sm89") == ("sm89", "sm120")


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Sep 23 10:11:16 UTC 2025\n",
            "580.95.05",
        ),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.133.20  Release Build  (x@y)\n",
            "570.133.20",
        ),
        ("", None),
        (None, None),
    ],
)
def test_the_drivers_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, version: str | None
) -> None:
    path = tmp_path / "version"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(flavours, "_DRIVER", path)
    assert driver_version() == version


def test_phases_are_shares_of_those_around_them() -> None:
    phases = Phases()
    phases.start("build", 4)
    phases.step("build", 0)
    assert phases.share == 1 / 4
    phases.start("tune", 2)
    phases.step("tune", 0)
    assert phases.share == 1 / 4 + 1 / 8
    phases.start("reformat", 1)
    phases.step("reformat", 0)
    assert phases.share == 1 / 4 + 1 / 4
    phases.finish("reformat")
    phases.finish("tune")
    assert phases.share == 1 / 2
    phases.step("build", 3)
    assert phases.share == 1


def test_a_layer_transposes_where_its_output_lies_in_another_order() -> None:
    nhwc, nchw = (3, 0, 2, 1), (3, 2, 1, 0)

    def layer(source: EngineTensor, result: EngineTensor) -> EngineLayer:
        return EngineLayer("__myl_Tran_myl0_1", "kgen", (source,), (result,))

    def tensor(shape: tuple[int, ...], order: tuple[int, ...]) -> EngineTensor:
        return EngineTensor("x", shape, order, "Float")

    x = tensor((-1, 16, 32, 32), nhwc)
    assert layer(x, tensor((-1, 16, 32, 32), nchw)).transposes
    assert not layer(x, tensor((-1, 16, 32, 32), nhwc)).transposes
    assert not layer(x, tensor((-1, 16, 1, 1), nchw)).transposes
    # A transpose to what the memory is like already: the image's, which is NHWC.
    assert not layer(tensor((-1, 32, 32, 3), nchw), tensor((-1, 3, 32, 32), nhwc)).transposes


def test_layers_of_an_inspector() -> None:
    """As its documentation shows them."""
    tensor = {"Name": "x", "Dimensions": [1, 8], "Format/Datatype": "Row major linear FP32"}
    document = {
        "Layers": [
            {"Name": "Reformatting CopyNode for Input Tensor 0", "LayerType": "Reformat", "Inputs": [tensor]},
            {"Name": "conv1 + relu1", "LayerType": "CaskConvolution", "Outputs": [tensor]},
            {"Name": "conv1 + relu1 [profile 1]", "LayerType": "CaskConvolution"},
        ],
        "Bindings": ["image", "logits"],
    }
    layers = layers_of_inspector(json.dumps(document))
    assert [layer.profile for layer in layers] == [0, 0, 1]
    assert summarize(of_profile(layers)) == {"Reformat": 1, "CaskConvolution": 1}
    assert layers[0].transposes
    assert layers[1].outputs == (EngineTensor("x", (1, 8)),)


def test_an_error_that_only_says_that_there_is_no_driver_is_none_beside_others() -> None:
    messages = Messages()
    absent = "catchCudaError (cudaError 35: CUDA driver version is insufficient for CUDA runtime version)"
    messages.add("ERROR", absent)
    assert messages.reasons() == [absent]
    messages.add("INTERNAL_ERROR", "a real one")
    messages.add("VERBOSE", "Layers:\nName: a")
    messages.add("VERBOSE", "much else")
    messages.add("WARNING", "take care")
    assert messages.reasons() == ["a real one"]
    assert (messages.layers, messages.warnings) == ("Layers:\nName: a", ["take care"])


def test_too_little_memory_is_said_to_be_that() -> None:
    reason = (
        "IBuilder::buildSerializedNetwork: Error Code 2: OutOfMemory (Requested size was 9e9 bytes. "
        "In reserve at /_src/common/memory.cpp:12)"
    )
    error = build_error([reason, reason], ModelProto())
    assert isinstance(error, RuntimeUnavailableError)
    assert error.message.count("Requested size was 9e9 bytes.") == 1
    assert "/_src" not in error.message
    assert "--batch" in str(error)
