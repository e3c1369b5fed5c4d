"""Finished .onnx files of all kinds: brought into the contract, or refused with what mends it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import pytest
import torch
from onnx import ModelProto, TensorProto, helper
from torch import Tensor, nn

from exporters.fusions.session import Session
from exporters.graph import export_graph
from exporters.nodes import attention_nodes, node_module
from exporters.onnx_source import OnnxSource, load_onnx, reference_attention, reference_logits
from lct_deploy.architecture import model_config
from lct_deploy.atomic import sha256_file
from lct_deploy.errors import CheckpointError, ExportError, LctDeployError, UsageError
from lct_deploy.models.classifier import ImageClassifier
from lct_deploy.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from tests.conftest import random_network
from tests.test_fusions_spellings import (
    SIZE,
    Lct,
    Net,
    Se,
    assert_fused,
    group_norm,
    load,
    mean_of_squares,
    noise,
    pytorch_logits,
    quiet,
    torch_export,
    var,
)

OTHER_MEAN = (0.1, 0.2, 0.3)


def network(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net(16, Lct(16, 4, mean_of_squares), Se(16), Lct(16, 4, group_norm))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TorchScript export for one image."""
    return torch_export(network(), tmp_path_factory.mktemp("onnx") / "net.onnx")


@pytest.fixture
def edited(tmp_path: Path, plain: Path) -> Callable[[Callable[[ModelProto], object]], Path]:
    """`plain` after an edit."""

    def edit(change: Callable[[ModelProto], object]) -> Path:
        model = onnx.load(plain)
        change(model)
        onnx.save(model, tmp_path / "edited.onnx")
        return tmp_path / "edited.onnx"

    return edit


def run(source: OnnxSource, images: np.ndarray) -> np.ndarray:
    return Session(source.model, threads=1).run(["logits"], images)["logits"]


def test_the_prepared_graph_has_the_contract_of_our_own_exports(plain: Path) -> None:
    source = load(plain)
    graph = source.model.graph
    (image,), (logits,) = graph.input, graph.output
    assert (image.name, logits.name) == ("image", "logits")
    assert image.type.tensor_type.elem_type == TensorProto.UINT8
    assert [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim] == ["N", SIZE, SIZE, 3]
    assert [d.dim_param or d.dim_value for d in logits.type.tensor_type.shape.dim] == ["N", 5]
    assert (source.height, source.width, source.num_classes) == (SIZE, SIZE, 5)
    assert source.sha256 == sha256_file(plain)
    assert source.normalization == (IMAGENET_MEAN, IMAGENET_STD)
    assert source.preprocessing is source.labels is source.arch is source.attention is None
    onnx.checker.check_model(source.model, full_check=True)


def test_the_prepared_graph_runs_any_batch_and_says_so(plain: Path) -> None:
    source = load(plain)
    images = noise(7)
    assert np.array_equal(run(source, images)[3:4], run(source, images[3:4]))
    assert "exported for a batch of 1; now it takes any" in " ".join(source.notes)


def test_the_reference_is_the_file_itself_batch_by_batch(plain: Path) -> None:
    source = load(plain)
    images = noise(5)
    session = Session(onnx.load(plain), threads=1)
    mean, std = (np.array(x, np.float32) for x in (IMAGENET_MEAN, IMAGENET_STD))
    x = ((images / np.float32(255) - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    alone = [session.run(["y"], x[i : i + 1])["y"] for i in range(5)]
    assert np.allclose(reference_logits(source, images), np.concatenate(alone), rtol=1e-5, atol=1e-6)


def test_a_batch_of_several_is_filled_up_for_the_reference(tmp_path: Path) -> None:
    model = network()
    with quiet():
        torch.onnx.export(model, (torch.randn(4, 3, SIZE, SIZE),), tmp_path / "four.onnx", dynamo=False)
    source = load(tmp_path / "four.onnx")
    assert_fused(source, model, 3)
    assert source.graph.input.batch == 4


def test_reference_gates_are_those_of_pytorch_in_float64(plain: Path) -> None:
    model = network()
    source, images = load(plain), noise(4)
    gates = reference_attention(source, images).gates
    assert list(gates) == ["layer1.0.attn", "layer1.1.attn", "layer1.2.attn"]
    recorded: list[np.ndarray] = []
    for attention in model.attentions:
        attention.register_forward_hook(
            lambda module, inputs, output: recorded.append((output / inputs[0]).mean((2, 3)).numpy())
        )
    pytorch_logits(model, images)
    for own, found in zip(recorded, gates.values(), strict=True):
        assert found.dtype == np.float64
        assert np.abs(found - own).max() <= 1e-5


def test_a_graph_whose_variance_cancels_is_noted(plain: Path, tmp_path: Path) -> None:
    (note,) = [note for note in load(plain).notes if "cancels in float32" in note]
    assert "layer1.0.attn" in note
    assert "layer1.2.attn" not in note
    torch.manual_seed(0)
    clean = load(torch_export(Net(16, Lct(16, 4, var)), tmp_path / "clean.onnx"))
    assert not any("cancels" in note for note in clean.notes)


def test_batch_norm_is_folded_into_the_convolutions(tmp_path: Path) -> None:
    model = network()
    with quiet():
        torch.onnx.export(
            model,
            (torch.randn(1, 3, SIZE, SIZE),),
            tmp_path / "net.onnx",
            dynamo=False,
            do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE,
        )
    held = {node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node}
    source = load(tmp_path / "net.onnx")
    assert "BatchNormalization" in held
    assert "BatchNormalization" not in {node.op_type for node in source.model.graph.node}
    assert_fused(source, model, 3)


@pytest.mark.parametrize("opset", [18, 23])
def test_an_opset_can_be_asked_for(plain: Path, opset: int) -> None:
    source = load_onnx(plain, mean=IMAGENET_MEAN, std=IMAGENET_STD, opset=opset)
    assert next(o.version for o in source.model.opset_import if not o.domain) == opset
    assert source.notes[0] == f"the graph is converted from opset 17 to {opset}"
    assert_fused(source, network(), 3)


def test_images_of_any_size_need_to_know_which(tmp_path: Path) -> None:
    model = network()
    axes = {"x": {0: "n", 2: "h", 3: "w"}}
    with quiet():
        torch.onnx.export(
            model,
            (torch.randn(1, 3, SIZE, SIZE),),
            tmp_path / "net.onnx",
            input_names=["x"],
            dynamic_axes=axes,
            dynamo=False,
        )
    with pytest.raises(UsageError, match="--image-size"):
        load(tmp_path / "net.onnx")
    source = load_onnx(tmp_path / "net.onnx", mean=IMAGENET_MEAN, std=IMAGENET_STD, image_size=24)
    assert source.height == source.width == 24
    assert_fused(source, model, 3, size=24)


def test_an_image_size_that_contradicts_the_graph(plain: Path) -> None:
    with pytest.raises(UsageError, match=r"--image-size 32 contradicts the graph, which takes 16×16"):
        load_onnx(plain, mean=IMAGENET_MEAN, std=IMAGENET_STD, image_size=32)


@pytest.mark.parametrize(("mean", "std"), [(None, None), (IMAGENET_MEAN, None), (None, IMAGENET_STD)])
def test_mean_and_std_have_to_be_given(plain: Path, mean: None, std: None) -> None:
    with pytest.raises(UsageError, match="--mean and --std"):
        load_onnx(plain, mean=mean, std=std)


class Softmax(nn.Module):
    def __init__(self, model: nn.Module, softmax: nn.Module) -> None:
        super().__init__()
        self.model, self.softmax = model, softmax

    def forward(self, x: Tensor) -> Tensor:
        return self.softmax(self.model(x))


@pytest.mark.parametrize("softmax", [nn.Softmax(dim=1), nn.LogSoftmax(dim=1)])
def test_a_softmax_at_the_end_is_dropped_and_noted(tmp_path: Path, softmax: nn.Module) -> None:
    model = network()
    source = load(torch_export(Softmax(model, softmax), tmp_path / "net.onnx"))
    assert "at the end is dropped" in " ".join(source.notes)
    images = noise()
    logits = run(source, images)
    assert np.allclose(logits, pytorch_logits(model, images), rtol=1e-4, atol=1e-5)
    assert np.allclose(logits, reference_logits(source, images), rtol=1e-4, atol=1e-5)


class TakesImages(nn.Module):
    """uint8 (N, H, W, 3) as our own classifier, around any network."""

    def __init__(self, model: nn.Module, mean: tuple[float, ...] = OTHER_MEAN) -> None:
        super().__init__()
        self.model = model
        self.mean = nn.Buffer(torch.tensor(mean).view(1, 3, 1, 1))
        self.std = nn.Buffer(torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels.permute(0, 3, 1, 2).float() / 255
        return self.model((x - self.mean) / self.std)


def export_uint8(model: nn.Module, path: Path) -> Path:
    with quiet():
        torch.onnx.export(
            model,
            (torch.zeros(1, SIZE, SIZE, 3, dtype=torch.uint8),),
            path,
            input_names=["pixels"],
            dynamo=False,
        )
    return path


def test_a_graph_that_takes_images_keeps_its_own_normalisation(tmp_path: Path) -> None:
    model = network()
    path = export_uint8(TakesImages(model).eval(), tmp_path / "net.onnx")
    source = load_onnx(path)
    assert source.normalization == (OTHER_MEAN, IMAGENET_STD)
    assert source.model.graph.input[0].name == "image"
    images = noise()
    expected = TakesImages(model).eval()(torch.tensor(images)).detach().numpy()
    assert np.allclose(run(source, images), expected, rtol=1e-4, atol=1e-5)
    assert np.allclose(reference_logits(source, images), expected, rtol=1e-4, atol=1e-5)
    assert load_onnx(path, mean=OTHER_MEAN).normalization == source.normalization
    with pytest.raises(
        CheckpointError, match=r"--mean .* contradicts .* its graph computes \(0.1, 0.2, 0.3\)"
    ):
        load_onnx(path, mean=IMAGENET_MEAN)


class Swapped(TakesImages):
    """Reads BGR: no mean and std of RGB describe it."""

    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(pixels.flip(3))


class Mixed(TakesImages):
    """Each channel takes some of another."""

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels.permute(0, 3, 1, 2).float() / 255
        return self.model((x + 0.1 * x.flip(1) - self.mean) / self.std)


@pytest.mark.parametrize("wrapper", [Swapped, Mixed])
def test_a_normalisation_that_cannot_be_read_is_left_open(tmp_path: Path, wrapper: type[TakesImages]) -> None:
    path = export_uint8(wrapper(network()).eval(), tmp_path / "net.onnx")
    assert load_onnx(path).normalization is None
    with pytest.raises(UsageError, match="drop --mean and --std"):
        load_onnx(path, mean=IMAGENET_MEAN, std=IMAGENET_STD)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of our own graphs, with its metadata."""
    path = tmp_path_factory.mktemp("own") / "model.onnx"
    preprocessing = Preprocessing(resize=40, crop=32)
    metadata = {
        "lct.arch": "lct_resnet18",
        "lct.labels": json.dumps(["a", "b", "c"]),
        "lct.preprocessing": preprocessing.model_dump_json(),
    }
    model = random_network(model_config("lct_resnet18", num_classes=3))
    onnx.save(export_graph(model, preprocessing, metadata=metadata).model, path)
    return path


def test_our_own_export_passes_through(own: Path) -> None:
    source = load_onnx(own)
    assert source.model == onnx.load(own)
    assert source.certificate.attention_blocks == len(source.certificate.fused) == 8
    assert source.certificate.fused[0].layer == "layer1.0.attn"
    assert source.preprocessing == Preprocessing(resize=40, crop=32)
    assert source.normalization == (IMAGENET_MEAN, IMAGENET_STD)
    assert (source.arch, source.labels) == ("lct_resnet18", ("a", "b", "c"))
    assert source.attention is not None
    assert (source.attention.kind, source.attention.groups) == ("lct", 16)
    images = noise(3, 32)
    assert np.array_equal(reference_logits(source, images), run(source, images))
    gates = reference_attention(source, images).gates
    assert list(gates) == [block.layer for block in source.certificate.fused]
    assert gates["layer4.1.attn"].shape == (3, 512)


def test_our_own_export_can_be_moved_to_another_opset(own: Path) -> None:
    source = load_onnx(own, opset=22)
    assert next(o.version for o in source.model.opset_import if not o.domain) == 22
    assert [node_module(node) for node in attention_nodes(source.model)] == [
        block.layer for block in load_onnx(own).certificate.fused
    ]
    images = noise(3, 32)
    assert np.allclose(run(source, images), reference_logits(source, images), rtol=1e-4, atol=1e-5)


def test_flags_that_contradict_our_metadata(own: Path) -> None:
    with pytest.raises(CheckpointError, match=r"--mean .* contradicts .* its metadata say"):
        load_onnx(own, mean=OTHER_MEAN)
    assert load_onnx(own, mean=IMAGENET_MEAN).normalization == (IMAGENET_MEAN, IMAGENET_STD)


def test_damaged_metadata_of_ours(tmp_path: Path, own: Path) -> None:
    model = onnx.load(own)
    helper.set_model_props(model, {"lct.preprocessing": "{}x"})
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(CheckpointError, match=r"its metadata lct\.\* are damaged"):
        load_onnx(tmp_path / "model.onnx")


def test_our_classifier_exported_plainly_is_fused(tmp_path: Path) -> None:
    """The contract's input and output, and no node of ours."""
    model = random_network(model_config("lct_resnet20", num_classes=3))
    classifier = ImageClassifier(model, Preprocessing(resize=32, crop=32)).eval()
    with quiet():
        torch.onnx.export(
            classifier,
            (torch.zeros(2, 32, 32, 3, dtype=torch.uint8),),
            tmp_path / "net.onnx",
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            dynamo=True,
            verbose=False,
        )
    source = load_onnx(tmp_path / "net.onnx")
    assert [block.layer for block in source.certificate.fused] == [
        f"network.{layer}" for layer in model.attention_blocks()
    ]
    images = noise(3, 32)
    assert np.allclose(run(source, images), reference_logits(source, images), rtol=1e-4, atol=1e-5)


def test_nothing_of_the_exporting_machine_is_left(tmp_path: Path) -> None:
    source = load(torch_export(network(), tmp_path / "net.onnx", opset=20, dynamo=True))
    text = str(source.model).replace(str(tmp_path), "TMP")
    assert "stack_trace" not in text
    assert ".py" not in text


def external(path: Path, location: str) -> Path:
    """`path` with its weights in a file beside it, which the model then says is at `location`."""
    model = onnx.load(path)
    target = path.parent / "external" / "net.onnx"
    shutil.rmtree(target.parent, ignore_errors=True)
    target.parent.mkdir()
    onnx.save(model, target, save_as_external_data=True, location="weights.bin", size_threshold=0)
    model = onnx.load(target, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    target.write_bytes(model.SerializeToString())
    return target


def test_weights_in_a_file_beside_it_are_read_and_count_in_the_hash(plain: Path) -> None:
    path = external(plain, "weights.bin")
    source = load(path)
    assert_fused(source, network(), 3)
    before = source.sha256
    weights = bytearray((path.parent / "weights.bin").read_bytes())
    weights[40] ^= 1
    (path.parent / "weights.bin").write_bytes(weights)
    assert load(path).sha256 != before


@pytest.mark.parametrize("location", ["../net.onnx", "/etc/passwd", "sub/../../net.onnx"])
def test_weights_outside_the_folder_are_refused(plain: Path, location: str) -> None:
    with pytest.raises(CheckpointError, match="outside the model's folder"):
        load(external(plain, location))


def test_a_link_that_leads_outside_is_refused(plain: Path) -> None:
    path = external(plain, "link.bin")
    (path.parent / "link.bin").symlink_to(plain)
    with pytest.raises(CheckpointError, match="outside the model's folder"):
        load(path)


def test_weights_that_are_missing_or_short(plain: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'absent\.bin', which is not there"):
        load(external(plain, "absent.bin"))
    path = external(plain, "weights.bin")
    weights = path.parent / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="truncated"):
        load(path)


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, -1])
def test_a_truncated_file(tmp_path: Path, plain: Path, kept: float) -> None:
    data = plain.read_bytes()
    end = int(kept * len(data)) if isinstance(kept, float) else kept
    (tmp_path / "cut.onnx").write_bytes(data[:end])
    with pytest.raises(CheckpointError, match=r"cut\.onnx"):
        load(tmp_path / "cut.onnx")


@pytest.mark.parametrize("data", [b"not a model", b"PK\x03\x04" + bytes(100), bytes(1000)])
def test_a_file_that_is_something_else(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "other.onnx").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"other\.onnx"):
        load(tmp_path / "other.onnx")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        load(tmp_path / "absent.onnx")
    with pytest.raises(CheckpointError, match="directory"):
        load(tmp_path)


def test_a_model_that_is_not_valid(edited: Callable[[Callable[[ModelProto], object]], Path]) -> None:
    def cut_a_wire(model: ModelProto) -> None:
        model.graph.node[-1].input[0] = "nowhere"

    with pytest.raises(CheckpointError, match="not valid ONNX"):
        load(edited(cut_a_wire))


@pytest.mark.parametrize("opset", [9, 11, 12])
def test_an_opset_that_is_too_old(tmp_path: Path, opset: int) -> None:
    path = torch_export(Net(16, Se(16)), tmp_path / "net.onnx", opset=opset)
    with pytest.raises(UsageError, match=rf"opset {opset}.*13 is the oldest"):
        load(path)


def test_an_opset_that_is_too_new(tmp_path: Path) -> None:
    path = torch_export(network(), tmp_path / "net.onnx", opset=24, dynamo=True)
    with pytest.raises(UsageError, match="opset 24, which cannot be converted down"):
        load(path)
    path = torch_export(network(), tmp_path / "net.onnx", opset=20)
    with pytest.raises(UsageError, match="opset 20, which cannot be converted down to 18"):
        load_onnx(path, mean=IMAGENET_MEAN, std=IMAGENET_STD, opset=18)


class FourChannels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.model = nn.Conv2d(4, 3, 1), network()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.conv(x))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = network()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.model(x + y)


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = network()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(x)
        return logits, 2 * logits


class FeatureMap(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = network()

    def forward(self, x: Tensor) -> Tensor:
        return self.model.layer1(self.model.stem(x))


IMAGE = torch.randn(1, 3, SIZE, SIZE)


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (FourChannels(), (torch.randn(1, 4, SIZE, SIZE),), r"FLOAT \[1,4,16,16\]; FLOAT \(N, 3, H, W\)"),
        (TwoInputs(), (IMAGE, IMAGE), r"2 inputs \(.*\); one, the images, is expected"),
        (TwoOutputs(), (IMAGE,), r"2 outputs \(.*\); one, the logits, is expected"),
        (FeatureMap(), (IMAGE,), r"FLOAT \(N, classes\) is expected"),
        (network(), (torch.randn(1, 3, SIZE, 24),), "16×24 pixels; only square"),
        (network().double(), (IMAGE.double(),), r"DOUBLE \[1,3,16,16\]; FLOAT"),
    ],
)
def test_graphs_that_take_or_give_something_else(
    tmp_path: Path, model: nn.Module, inputs: tuple[Tensor, ...], message: str
) -> None:
    with quiet():
        torch.onnx.export(model.eval(), inputs, tmp_path / "net.onnx", dynamo=False)
    with pytest.raises(ExportError, match=message):
        load(tmp_path / "net.onnx")


class BatchMean(nn.Module):
    """Logits that depend on the other images of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.model = network()

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        return logits - logits.mean(0, keepdim=True) / 2


def test_images_that_mix_within_a_batch_are_refused(tmp_path: Path) -> None:
    path = torch_export(BatchMean(), tmp_path / "net.onnx", dynamic=True)
    with pytest.raises(ExportError, match="logits depend on the others of its batch"):
        load(path)


def flatten_with_the_batch(model: ModelProto) -> None:
    """A Concat of a constant for one image: another batch does not fit."""
    zeros = helper.make_tensor("zeros", TensorProto.FLOAT, [1, 5], [0.0] * 5)
    model.graph.initializer.append(zeros)
    last = model.graph.node[-1]
    last.output[0] = "inner"
    model.graph.node.append(helper.make_node("Concat", ["inner", "zeros"], ["y"], axis=1))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 10


def test_a_batch_that_cannot_be_made_dynamic(
    edited: Callable[[Callable[[ModelProto], object]], Path],
) -> None:
    with pytest.raises(ExportError, match="exported for a batch of 1 and not usable for other batches"):
        load(edited(flatten_with_the_batch))


def test_names_that_the_contract_needs_may_be_taken(
    edited: Callable[[Callable[[ModelProto], object]], Path],
) -> None:
    def rename(model: ModelProto) -> None:
        wanted = {model.graph.node[2].output[0]: "logits", model.graph.node[4].output[0]: "image"}
        for node in model.graph.node:
            node.input[:] = [wanted.get(name, name) for name in node.input]
            node.output[:] = [wanted.get(name, name) for name in node.output]

    source = load(edited(rename))
    assert_fused(source, network(), 3)


def test_layers_and_weights_whose_names_are_taken_get_others(
    edited: Callable[[Callable[[ModelProto], object]], Path],
) -> None:
    def collide(model: ModelProto) -> None:
        for node in model.graph.node:
            node.name = node.name.replace("layer1.2/attn/", "layer1.0/attn/again_")
            node.input[:] = ["layer1.0.attn/w" if name == "fc.bias" else name for name in node.input]
        next(x for x in model.graph.initializer if x.name == "fc.bias").name = "layer1.0.attn/w"

    source = load(edited(collide))
    layers = [block.layer for block in source.certificate.fused]
    assert layers == ["layer1.0.attn", "layer1.1.attn", "layer1.0.attn_2"]
    assert list(source.gates) == layers
    assert_fused(source, network(), 3)


def test_nodes_without_names_are_numbered(
    edited: Callable[[Callable[[ModelProto], object]], Path],
) -> None:
    def forget(model: ModelProto) -> None:
        for node in model.graph.node:
            node.name = ""

    source = load(edited(forget))
    layers = [block.layer for block in source.certificate.fused]
    assert layers == ["attention_1", "attention_2", "attention_3"]
    assert list(reference_attention(source, noise(2)).gates) == layers


def test_weights_that_are_inputs_too_are_constants(
    edited: Callable[[Callable[[ModelProto], object]], Path],
) -> None:
    def expose(model: ModelProto) -> None:
        for x in model.graph.initializer:
            model.graph.input.append(helper.make_tensor_value_info(x.name, x.data_type, x.dims))

    assert_fused(load(edited(expose)), network(), 3)


def test_an_epsilon_of_1e_8_anywhere_survives(tmp_path: Path) -> None:
    """The library's rewrite rules take "x + 1e-8" for x."""
    torch.manual_seed(0)
    model = Net(16, Lct(16, 4, var, epsilon=1e-8))
    source = load(torch_export(model, tmp_path / "net.onnx"))
    assert source.attention is not None
    assert source.attention.epsilon == 1e-8


def test_nodes_of_ours_and_plain_operators_may_be_mixed(plain: Path, tmp_path: Path) -> None:
    prepared = load(plain).model
    mixed = onnx.inliner.inline_selected_functions(prepared, [("lct", "SqueezeExcitation")])
    assert len(attention_nodes(mixed)) == 2
    onnx.save(mixed, tmp_path / "mixed.onnx")
    source = load_onnx(tmp_path / "mixed.onnx")
    ops = [(block.layer, block.op) for block in source.certificate.fused]
    assert ops[0] == ("layer1.0.attn", "lct::LinearContextTransform")
    assert ops[1][1] == "lct::SqueezeExcitation"
    assert ops[2] == ("layer1.2.attn", "lct::LinearContextTransform")
    images = noise()
    assert np.allclose(run(source, images), pytorch_logits(network(), images), rtol=1e-4, atol=1e-5)
    gates, expected = (
        reference_attention(source, images).gates,
        reference_attention(load(plain), images).gates,
    )
    for own, found in zip(expected.values(), gates.values(), strict=True):
        assert np.abs(own - found).max() <= 1e-5


def test_the_standard_domain_by_its_other_name(
    edited: Callable[[Callable[[ModelProto], object]], Path],
) -> None:
    def rename(model: ModelProto) -> None:
        model.opset_import[0].domain = "ai.onnx"
        model.graph.node[-1].domain = "ai.onnx"

    assert_fused(load(edited(rename)), network(), 3)


def test_damage_anywhere_is_an_error_of_ours(tmp_path: Path, plain: Path) -> None:
    """Bytes changed at random: refused with a message, or a model that still runs."""
    data, rng = plain.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(data)
        for position in rng.integers(0, len(data), rng.integers(1, 4)):
            damaged[position] = rng.integers(0, 256)
        (tmp_path / "damaged.onnx").write_bytes(damaged)
        try:
            load(tmp_path / "damaged.onnx")
        except LctDeployError:
            refused += 1
    assert refused


def test_functions_of_other_domains_are_inlined(plain: Path, tmp_path: Path) -> None:
    """The attention in a model-local function, as older exporters wrote modules."""
    model = onnx.load(plain)
    opset = next(entry for entry in model.opset_import if not entry.domain)
    sigmoid = helper.make_function(
        "pkg", "Gate", ["a"], ["s"], [helper.make_node("Sigmoid", ["a"], ["s"])], [opset]
    )
    model.functions.append(sigmoid)
    model.opset_import.append(helper.make_opsetid("pkg", 1))
    for node in model.graph.node:
        if node.op_type == "Sigmoid":
            node.op_type, node.domain = "Gate", "pkg"
    onnx.save(model, tmp_path / "net.onnx")
    source = load(tmp_path / "net.onnx")
    assert_fused(source, network(), 3)
    assert [function.domain for function in source.model.functions] == ["lct", "lct"]
    assert not any(entry.domain == "pkg" for entry in source.model.opset_import)
