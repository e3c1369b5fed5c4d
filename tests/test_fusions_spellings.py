"""LCT, SE and SE+ as people write them, through both of PyTorch's exporters: found, read and equal."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from exporters.fusions.session import Session
from exporters.nodes import attention_nodes, node_module
from exporters.onnx_source import OnnxSource, load_onnx, reference_attention, reference_logits
from lct_deploy.architecture import model_config
from lct_deploy.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from tests.conftest import random_network

SIZE = 16
EPSILON = 1e-5


def mean(x: Tensor) -> Tensor:
    return x.mean((2, 3))


POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": mean,
    "mean of means": lambda x: x.mean(3).mean(2),
    "kept dimensions": lambda x: x.mean((2, 3), keepdim=True).flatten(1),
    "adaptive pool": lambda x: functional.adaptive_avg_pool2d(x, 1)[:, :, 0, 0],
    "average pool": lambda x: functional.avg_pool2d(x, [int(n) for n in x.shape[2:]]).squeeze(-1).squeeze(-1),
    "flat mean": lambda x: x.flatten(2).mean(2),
    "sum": lambda x: x.sum((2, 3)) / (x.shape[2] * x.shape[3]),
}

SIGMOIDS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "exp": lambda a: 1 / (1 + torch.exp(-a)),
    "reciprocal": lambda a: (1 + torch.exp(-a)).reciprocal(),
    "tanh": lambda a: 0.5 * (torch.tanh(a / 2) + 1),
}

SCALES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "unsqueezed": lambda x, g: x * g[:, :, None, None],
    "gate first": lambda x, g: g.unsqueeze(-1).unsqueeze(-1) * x,
    "view": lambda x, g: x * g.view(x.shape[0], -1, 1, 1),
    "expanded": lambda x, g: x * g.view(x.shape[0], x.shape[1], 1, 1).expand_as(x),
    "repeated": lambda x, g: x * g[..., None, None].repeat(1, 1, x.shape[2], x.shape[3]),
}


def mean_of_squares(z: Tensor, groups: int, epsilon: float) -> Tensor:
    y = z.view(z.shape[0], groups, -1)
    centre = y.mean(-1, keepdim=True)
    variance = (y**2).mean(-1, keepdim=True) - centre**2
    return ((y - centre) / torch.sqrt(variance + epsilon)).reshape(z.shape[0], z.shape[1])


def clamped(z: Tensor, groups: int, epsilon: float) -> Tensor:
    y = z.unflatten(1, (groups, -1))
    variance = (y.square().mean(2, keepdim=True) - y.mean(2, keepdim=True).square()).clamp(min=0)
    return ((y - y.mean(2, keepdim=True)) * (variance + epsilon).rsqrt()).flatten(1)


def var(z: Tensor, groups: int, epsilon: float) -> Tensor:
    y = z.view(z.size(0), groups, z.size(1) // groups)
    variance, centre = torch.var_mean(y, dim=2, unbiased=False, keepdim=True)
    return ((y - centre) / (variance + epsilon).sqrt()).view(z.size(0), -1)


def batch_first(z: Tensor, groups: int, epsilon: float) -> Tensor:
    y = z.reshape(z.shape[0] * groups, -1)
    y = y - y.mean(1, keepdim=True)
    return (y / torch.sqrt(y.pow(2).mean(1, keepdim=True) + epsilon)).reshape(z.shape[0], -1)


def layer_norm(z: Tensor, groups: int, epsilon: float) -> Tensor:
    y = z.view(z.shape[0], groups, -1)
    return functional.layer_norm(y, (int(z.shape[1]) // groups,), eps=epsilon).view(z.shape[0], -1)


def instance_norm(z: Tensor, groups: int, epsilon: float) -> Tensor:
    return functional.instance_norm(z.unflatten(1, (groups, -1)), eps=epsilon).flatten(1)


def group_norm(z: Tensor, groups: int, epsilon: float) -> Tensor:
    return functional.group_norm(z, groups, eps=epsilon)


def group_norm_4d(z: Tensor, groups: int, epsilon: float) -> Tensor:
    return functional.group_norm(z[:, :, None, None], groups, eps=epsilon).flatten(1)


NORMALIZATIONS = {
    function.__name__: function
    for function in (
        mean_of_squares,
        clamped,
        var,
        batch_first,
        layer_norm,
        instance_norm,
        group_norm,
        group_norm_4d,
    )
}


class Lct(nn.Module):
    """An LCT put together from the spellings above."""

    def __init__(
        self,
        channels: int,
        groups: int,
        normalize: Callable[[Tensor, int, float], Tensor],
        *,
        epsilon: float = EPSILON,
        pool: str = "mean",
        sigmoid: str = "sigmoid",
        scale: str = "unsqueezed",
        shape: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.groups, self.epsilon, self.normalize = groups, epsilon, normalize
        self.pool, self.sigmoid, self.scale = POOLS[pool], SIGMOIDS[sigmoid], SCALES[scale]
        self.w = nn.Parameter(torch.randn(shape or (channels,)))
        self.b = nn.Parameter(torch.randn(shape or (channels,)))

    def forward(self, x: Tensor) -> Tensor:
        z = self.normalize(self.pool(x), self.groups, self.epsilon)
        if self.w.dim() == 4:
            z = z[:, :, None, None]
        return self.scale(x, self.sigmoid(self.w * z + self.b).flatten(1))


class GroupNormLct(nn.Module):
    """w and b are those of an nn.GroupNorm."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.norm = nn.GroupNorm(groups, channels, eps=EPSILON)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.norm(self.pool(x)))


class Se(nn.Module):
    """SE as in its authors' and most other repositories; with `groups` SE+."""

    def __init__(
        self, channels: int, *, bias: bool = True, conv: bool = False, groups: int | None = None
    ) -> None:
        super().__init__()
        hidden = max(1, channels // 4)
        self.conv, self.groups = conv, groups
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.layers = [
            nn.Conv2d(i, o, 1, bias=bias) if conv else nn.Linear(i, o, bias)
            for i, o in ((channels, hidden), (hidden, channels))
        ]
        self.fc = nn.Sequential(self.layers[0], nn.ReLU(inplace=True), self.layers[1], nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        n, c, _, _ = x.size()
        z = self.avg_pool(x)
        if self.groups is not None:
            z = mean_of_squares(z.view(n, c), self.groups, EPSILON).view(n, c, 1, 1)
        y = self.fc(z) if self.conv else self.fc(z.view(n, c)).view(n, c, 1, 1)
        return x * y.expand_as(x)


class Block(nn.Module):
    def __init__(self, channels: int, attention: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.attn = attention

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.attn(self.bn2(self.conv2(y))) + x)


class Net(nn.Module):
    """Two or three residual blocks, BatchNorm statistics and all."""

    def __init__(self, channels: int, *attentions: nn.Module, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, stride=2, padding=1)
        self.layer1 = nn.Sequential(*(Block(channels, attention) for attention in attentions))
        self.attentions = attentions
        self.fc = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean = 0.2 * torch.randn(module.num_features)
                module.running_var = 0.05 + 0.15 * torch.rand(module.num_features)
                nn.init.uniform_(module.weight, 0.5, 1.5)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer1(torch.relu(self.stem(x))).mean((2, 3)))


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """The exporters warn of their own deprecations and of an absent torchvision."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)


def torch_export(
    network: nn.Module,
    path: Path,
    *,
    opset: int = 17,
    dynamo: bool = False,
    dynamic: bool = False,
    size: int = SIZE,
) -> Path:
    """Plain `torch.onnx.export`, as anybody would call it."""
    x = torch.randn(2 if dynamic else 1, 3, size, size)
    settings: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"]}
    if dynamic and dynamo:
        settings["dynamic_shapes"] = ({0: torch.export.Dim.DYNAMIC},)
    elif dynamic:
        settings["dynamic_axes"] = {"x": {0: "batch"}, "y": {0: "batch"}}
    with quiet():
        torch.onnx.export(
            network.eval(), (x,), path, opset_version=opset, dynamo=dynamo, verbose=False, **settings
        )
    return path


def load(path: Path) -> OnnxSource:
    return load_onnx(path, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def noise(count: int = 5, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def pytorch_logits(network: nn.Module, images: np.ndarray) -> np.ndarray:
    x = torch.tensor(images).permute(0, 3, 1, 2) / 255.0
    x = (x - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]
    x = x.to(next(network.parameters()).dtype)
    with torch.inference_mode():
        return network(x).numpy()


def parameters(source: OnnxSource, layer: str) -> list[np.ndarray]:
    """The inputs of a fused node after X."""
    held = {x.name: onnx.numpy_helper.to_array(x) for x in source.model.graph.initializer}
    node = next(n for n in attention_nodes(source.model) if node_module(n) == layer)
    return [held[name] for name in node.input[1:]]


def attributes(source: OnnxSource, layer: str) -> dict[str, float]:
    node = next(n for n in attention_nodes(source.model) if node_module(n) == layer)
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def assert_fused(source: OnnxSource, network: nn.Module, blocks: int, *, size: int = SIZE) -> None:
    """Every block is one node, nothing of it is left, and the logits are the file's and PyTorch's."""
    assert not source.certificate.misses
    assert len(source.certificate.fused) == source.certificate.attention_blocks == blocks
    assert len(attention_nodes(source.model)) == blocks
    assert not {"Sigmoid", "Tanh", "Exp", "Sqrt"} & {node.op_type for node in source.model.graph.node}
    images = noise(size=size)
    logits = Session(source.model, threads=1).run(["logits"], images)["logits"]
    for expected in (reference_logits(source, images), pytorch_logits(network, images)):
        assert np.abs(logits - expected).max() <= 2e-5 * np.abs(expected).max()


def assert_lct(source: OnnxSource, layer: str, module: Lct, *, exact: bool = True) -> None:
    w, b = parameters(source, layer)
    for found, own in ((w, module.w), (b, module.b)):
        expected = own.detach().numpy().ravel()
        assert np.array_equal(found, expected) if exact else np.allclose(found, expected, rtol=1e-6)
    held = attributes(source, layer)
    assert held["groups"] == module.groups
    assert held["epsilon"] == pytest.approx(module.epsilon, rel=1e-6)


EXPORTS = [(13, False, False), (17, False, True), (20, False, False), (18, True, True), (23, True, False)]


@pytest.mark.parametrize(("opset", "dynamo", "dynamic"), EXPORTS)
def test_every_way_to_write_the_normalisation_is_one_node(
    tmp_path: Path, opset: int, dynamo: bool, dynamic: bool
) -> None:
    torch.manual_seed(0)
    blocks = [Lct(16, 4, function) for function in NORMALIZATIONS.values()]
    network = Net(16, *blocks)
    path = torch_export(network, tmp_path / "net.onnx", opset=opset, dynamo=dynamo, dynamic=dynamic)
    source = load(path)
    assert_fused(source, network, len(NORMALIZATIONS))
    for index, block in enumerate(blocks):
        assert_lct(source, f"layer1.{index}.attn", block)
    assert source.attention is not None
    assert (source.attention.kind, source.attention.groups) == ("lct", 4)
    assert source.attention.epsilon == EPSILON


@pytest.mark.parametrize(("opset", "dynamo", "dynamic"), EXPORTS)
def test_every_way_to_pool_scale_and_squash_is_one_node(
    tmp_path: Path, opset: int, dynamo: bool, dynamic: bool
) -> None:
    torch.manual_seed(0)
    pools = [Lct(8, 2, group_norm, pool=pool) for pool in POOLS]
    sigmoids = [Lct(8, 2, mean_of_squares, sigmoid=sigmoid) for sigmoid in SIGMOIDS]
    scales = [Lct(8, 2, var, scale=scale) for scale in SCALES]
    shapes = [Lct(8, 2, var, shape=shape) for shape in ((8,), (1, 8), (1, 8, 1, 1))]
    blocks = [*pools, *sigmoids, *scales, *shapes]
    network = Net(8, *blocks)
    path = torch_export(network, tmp_path / "net.onnx", opset=opset, dynamo=dynamo, dynamic=dynamic)
    source = load(path)
    assert_fused(source, network, len(blocks))
    for index, block in enumerate(blocks):
        assert_lct(source, f"layer1.{index}.attn", block)


@pytest.mark.parametrize(("opset", "dynamo", "dynamic"), EXPORTS)
def test_squeeze_and_excitation_with_and_without_biases_and_normalisation(
    tmp_path: Path, opset: int, dynamo: bool, dynamic: bool
) -> None:
    torch.manual_seed(0)
    blocks = [
        Se(16, bias=bias, conv=conv, groups=groups)
        for bias in (True, False)
        for conv in (True, False)
        for groups in (None, 4)
    ]
    normed = GroupNormLct(16, 2)
    network = Net(16, *blocks, normed)
    path = torch_export(network, tmp_path / "net.onnx", opset=opset, dynamo=dynamo, dynamic=dynamic)
    source = load(path)
    assert_fused(source, network, 9)
    for index, block in enumerate(blocks):
        layer = f"layer1.{index}.attn"
        op = "NormalizedSqueezeExcitation" if block.groups else "SqueezeExcitation"
        assert source.certificate.fused[index].op == f"lct::{op}"
        assert attributes(source, layer).get("groups") == block.groups
        w1, b1, w2, b2 = parameters(source, layer)
        for weight, bias, own in ((w1, b1, block.layers[0]), (w2, b2, block.layers[1])):
            held = dict(own.named_parameters())
            assert np.array_equal(weight, held["weight"].numpy().reshape(weight.shape))
            assert np.array_equal(bias, held["bias"].numpy() if "bias" in held else 0 * bias)
    w, b = parameters(source, "layer1.8.attn")
    assert np.array_equal(w, normed.norm.weight.numpy())
    assert np.array_equal(b, normed.norm.bias.numpy())


class UnbiasedLct(Lct):
    """torch.var's default: m − 1 in the denominator."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(channels, groups, self.unbiased)

    @staticmethod
    def unbiased(z: Tensor, groups: int, epsilon: float) -> Tensor:
        y = z.unflatten(1, (groups, -1))
        variance = y.var(2, keepdim=True)
        return ((y - y.mean(2, keepdim=True)) / (variance + epsilon).sqrt()).flatten(1)


class TemperedLct(Lct):
    def forward(self, x: Tensor) -> Tensor:
        z = self.normalize(x.mean((2, 3)), self.groups, self.epsilon)
        return x * torch.sigmoid((self.w * z + self.b) / 0.3)[:, :, None, None]


class BatchNormSe(nn.Module):
    """A BatchNorm between the layers, as in some mobile networks."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, 4, 1, bias=False), nn.Conv2d(4, channels, 1)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn(self.fc1(functional.adaptive_avg_pool2d(x, 1))))
        return x * torch.sigmoid(self.fc2(y))


class GroupNormSe(nn.Module):
    """SE+ whose normalisation has a scale and a shift of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, channels)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)
        self.fc1, self.fc2 = nn.Linear(channels, 4), nn.Linear(4, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.fc1(self.norm(x.mean((2, 3)))))
        return x * torch.sigmoid(self.fc2(y))[:, :, None, None]


def test_what_is_equivalent_is_fused_with_the_parameters_that_make_it_so(tmp_path: Path) -> None:
    torch.manual_seed(0)
    unbiased, tempered = UnbiasedLct(16, 4), TemperedLct(16, 4, var)
    network = Net(16, unbiased, tempered, BatchNormSe(16), GroupNormSe(16))
    source = load(torch_export(network, tmp_path / "net.onnx"))
    assert_fused(source, network, 4)
    w, b = parameters(source, "layer1.0.attn")
    assert np.allclose(w, unbiased.w.detach() * 0.75**0.5, rtol=1e-6)
    assert np.array_equal(b, unbiased.b.detach())
    assert attributes(source, "layer1.0.attn")["epsilon"] == pytest.approx(EPSILON * 0.75, rel=1e-6)
    w, b = parameters(source, "layer1.1.attn")
    assert np.allclose(w, tempered.w.detach() / 0.3, rtol=1e-6)
    assert np.allclose(b, tempered.b.detach() / 0.3, rtol=1e-6)


def squeezed(x: Tensor) -> Tensor:
    return functional.adaptive_avg_pool2d(x, 1).squeeze()


@pytest.mark.parametrize("opset", [13, 20])
def test_a_squeeze_that_names_no_axes_leaves_the_batch(tmp_path: Path, opset: int) -> None:
    torch.manual_seed(0)
    block = Lct(16, 4, group_norm)
    block.pool = squeezed
    network = Net(16, block)
    path = torch_export(network, tmp_path / "net.onnx", opset=opset, dynamic=True)
    model = onnx.load(path)
    for node in model.graph.node:
        if node.op_type == "Squeeze":
            del node.input[1:]
    onnx.save(model, path)
    source = load(path)
    assert_fused(source, network, 1)
    assert_lct(source, "layer1.0.attn", block)


class ClampedSe(nn.Module):
    """Its ReLU is a clamp."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, 4), nn.Linear(4, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(self.fc1(x.mean((2, 3))).clamp(min=0)))[:, :, None, None]


@pytest.mark.parametrize("dynamo", [False, True])
def test_images_of_one_position_and_a_module_used_twice(tmp_path: Path, dynamo: bool) -> None:
    torch.manual_seed(0)
    twice = Lct(16, 4, mean_of_squares)
    network = Net(16, twice, ClampedSe(16), twice)
    path = torch_export(network, tmp_path / "net.onnx", opset=18, dynamo=dynamo, size=2)
    source = load(path)
    assert_fused(source, network, 3, size=2)
    layers = [block.layer for block in source.certificate.fused]
    assert len(set(layers)) == 3
    for layer in (layers[0], layers[2]):
        assert_lct(source, layer, twice)


@given(
    size=st.integers(2, 9),
    groups=st.integers(1, 9),
    epsilon=st.sampled_from([1e-3, 1e-5, 1e-6, 1e-8, 1e-12]),
    normalize=st.sampled_from(sorted(NORMALIZATIONS)),
    pool=st.sampled_from(sorted(POOLS)),
    sigmoid=st.sampled_from(sorted(SIGMOIDS)),
    scale=st.sampled_from(sorted(SCALES)),
    rank=st.sampled_from([1, 2, 4]),
    opset=st.integers(13, 20),
    dynamic=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_combination_of_shapes_and_spellings(
    tmp_path: Path,
    size: int,
    groups: int,
    epsilon: float,
    normalize: str,
    pool: str,
    sigmoid: str,
    scale: str,
    rank: int,
    opset: int,
    dynamic: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    channels = size * groups
    shape = {1: (channels,), 2: (1, channels), 4: (1, channels, 1, 1)}[rank]
    blocks = [
        Lct(
            channels,
            groups,
            NORMALIZATIONS[normalize],
            epsilon=epsilon,
            pool=pool,
            sigmoid=sigmoid,
            scale=scale,
            shape=shape,
        )
        for _ in range(2)
    ]
    network = Net(channels, *blocks)
    try:
        path = torch_export(network, tmp_path / "net.onnx", opset=opset, dynamic=dynamic)
    except torch.onnx.errors.SymbolicValueError:
        reject()  # the exporter has no shape for some instance norms of a dynamic batch
    source = load(path)
    assert not source.certificate.misses
    for index, block in enumerate(blocks):
        assert_lct(source, f"layer1.{index}.attn", block)
    images = noise()
    logits = Session(source.model, threads=1).run(["logits"], images)["logits"]
    expected = pytorch_logits(network.double(), images)  # in float32 some of them are off by more
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e-6, 1e4])
def test_parameters_of_any_size_are_read_to_the_bit(tmp_path: Path, scale: float) -> None:
    torch.manual_seed(0)
    blocks = [Lct(16, 4, mean_of_squares), Lct(16, 4, group_norm)]
    for block in blocks:
        nn.init.normal_(block.w, std=scale)
    source = load(torch_export(Net(16, *blocks), tmp_path / "net.onnx"))
    assert not source.certificate.misses
    for index, block in enumerate(blocks):
        w, b = parameters(source, f"layer1.{index}.attn")
        assert np.allclose(w, block.w.detach(), rtol=1e-7, atol=3e-16)
        assert np.array_equal(b, block.b.detach())
        assert attributes(source, f"layer1.{index}.attn")["groups"] == 4


def test_channels_whose_w_is_zero_do_not_hide_the_groups(tmp_path: Path) -> None:
    torch.manual_seed(0)
    block = Lct(24, 4, layer_norm)
    nn.init.zeros_(block.w)
    with torch.no_grad():
        block.w[7] = 0.5
    network = Net(24, block)
    source = load(torch_export(network, tmp_path / "net.onnx"))
    assert_fused(source, network, 1)
    assert_lct(source, "layer1.0.attn", block)


@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("arch", ["lct_resnet18", "lct_resnet26", "se_resnet26", "se_plus_resnet26"])
def test_our_networks_exported_plainly(tmp_path: Path, arch: str, dynamo: bool) -> None:
    network = random_network(model_config(arch, num_classes=7), size=32)
    path = torch_export(
        network, tmp_path / "net.onnx", opset=20 if dynamo else 17, dynamo=dynamo, dynamic=dynamo, size=32
    )
    source = load(path)
    layers = list(network.attention_blocks())
    assert [block.layer for block in source.certificate.fused] == layers
    assert_fused(source, network, len(layers), size=32)
    assert source.attention == network.config.attention
    gates = reference_attention(source, noise(2, 32)).gates
    assert list(gates) == layers
    for layer, attention in network.attention_blocks().items():
        assert gates[layer].shape == (2, attention.channels)
        assert gates[layer].dtype == np.float64
