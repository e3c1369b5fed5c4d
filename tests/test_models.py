"""The networks against the paper's equations, written out in NumPy float64, and against He et al."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from lct_deploy.architecture import StridePlacement, model_config
from lct_deploy.models import LinearContextTransform, SqueezeExcitation, build_model
from tests.conftest import random_network

Array = NDArray[np.float64]


def sigmoid(a: Array) -> Array:
    return np.exp(-np.logaddexp(0.0, -a))


def normalized(z: Array, groups: int, epsilon: float) -> Array:
    """Equations (2) and (3), group by group."""
    result = np.empty_like(z)
    size = z.shape[1] // groups
    for image in range(z.shape[0]):
        for first in range(0, z.shape[1], size):
            group = z[image, first : first + size]
            mean = group.sum() / size
            variance = ((group - mean) ** 2).sum() / size
            result[image, first : first + size] = (group - mean) / math.sqrt(variance + epsilon)
    return result


def lct_gate(x: Array, block: LinearContextTransform) -> Array:
    """Equations (2) to (4) and the σ of (5)."""
    z = normalized(x.mean(axis=(2, 3)), block.groups, block.epsilon)
    return sigmoid(block.w.double().numpy() * z + block.b.double().numpy())


def se_gate(x: Array, block: SqueezeExcitation) -> Array:
    """Equation (1); SE+ normalises the context first."""
    z = x.mean(axis=(2, 3))
    if block.groups is not None:
        z = normalized(z, block.groups, block.epsilon)
    first, second = (
        (layer.weight.double().numpy(), layer.bias.double().numpy()) for layer in (block.fc1, block.fc2)
    )
    hidden = np.maximum(z @ first[0].T + first[1], 0.0)
    return sigmoid(hidden @ second[0].T + second[1])


def random_lct(channels: int, groups: int, epsilon: float = 1e-5, seed: int = 0) -> LinearContextTransform:
    torch.manual_seed(seed)
    block = LinearContextTransform(channels, groups, epsilon=epsilon).requires_grad_(False)
    nn.init.normal_(block.w)
    nn.init.normal_(block.b)
    return block


def rounding(x: Array, dtype: torch.dtype, epsilon: float) -> float:
    """What a mean's rounding error can do to a gate: ε alone stops the division from blowing it up."""
    return 1e-6 + 32 * torch.finfo(dtype).eps * float(np.abs(x).max()) / math.sqrt(epsilon)


SHAPES = st.tuples(*[st.integers(1, 3), st.integers(1, 8), st.integers(2, 6), *[st.integers(1, 5)] * 2])
SCALES = st.sampled_from([0.0, 1e-7, 1e-3, 1.0, 100.0])
OFFSETS = st.sampled_from([0.0, -3.0, 1e3, 1e6])
EPSILONS = st.sampled_from([1e-8, 1e-5, 1e-3, 1.0])
SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=150, deadline=None)
@given(SHAPES, SCALES, OFFSETS, EPSILONS, SEEDS, st.sampled_from([torch.float32, torch.float64]))
def test_lct_is_equations_2_to_5(
    shape: tuple[int, ...], scale: float, offset: float, epsilon: float, seed: int, dtype: torch.dtype
) -> None:
    n, groups, size, height, width = shape
    block = random_lct(groups * size, groups, epsilon, seed % 1000)
    values = np.random.default_rng(seed).normal(offset, scale, (n, groups * size, height, width))
    x = torch.tensor(values, dtype=dtype)
    gate, exact = block.gate(x), lct_gate(x.double().numpy(), block)
    np.testing.assert_allclose(gate.double().numpy(), exact, rtol=0, atol=rounding(values, dtype, epsilon))
    assert torch.equal(block(x), x * gate[:, :, None, None])


@settings(max_examples=80, deadline=None)
@given(SHAPES, SCALES, OFFSETS, SEEDS, st.booleans())
def test_se_is_equation_1(shape: tuple[int, ...], scale: float, offset: float, seed: int, plus: bool) -> None:
    n, groups, size, height, width = shape
    torch.manual_seed(seed % 1000)
    block = SqueezeExcitation(groups * size, reduction=4, epsilon=1e-5, groups=groups if plus else None)
    block = block.double().requires_grad_(False)
    x = torch.tensor(np.random.default_rng(seed).normal(offset, scale, (n, groups * size, height, width)))
    exact = se_gate(x.numpy(), block)
    np.testing.assert_allclose(block.gate(x).numpy(), exact, atol=rounding(x.numpy(), x.dtype, 1e-5))
    np.testing.assert_allclose(block(x).numpy(), x.numpy() * block.gate(x).numpy()[:, :, None, None])


@pytest.mark.parametrize("value", [0.0, 1.0, -0.25, 65504.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_constant_input_leaves_only_b(value: float, dtype: torch.dtype) -> None:
    block = random_lct(32, 8)
    gate = block.gate(torch.full((2, 32, 7, 7), value, dtype=dtype))
    expected = torch.sigmoid(block.b.to(gate.dtype)).expand(2, -1)
    assert torch.equal(gate, expected)


def coarse_contexts(dtype: torch.dtype) -> Tensor:
    """Contexts near 8 that differ by about 0.1 within a group: sixteen bits do not hold their squares."""
    generator = torch.Generator().manual_seed(0)
    context = 8.0 + 0.1 * torch.randn(4, 64, 1, 1, generator=generator)
    return (context + 0.2 * torch.randn(4, 64, 14, 14, generator=generator)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_gate_of_a_16_bit_network_is_computed_in_float32(dtype: torch.dtype) -> None:
    block, x = random_lct(64, 16).to(dtype), coarse_contexts(dtype)
    gate, exact = block.gate(x), lct_gate(x.double().numpy(), block)
    assert gate.dtype == torch.float32
    assert np.abs(gate.double().numpy() - exact).max() < 1e-5
    assert block(x).dtype == dtype
    assert torch.equal(block(x), x * gate.to(dtype)[:, :, None, None])

    grouped = x.mean(dim=(2, 3)).unflatten(1, (16, 4))
    mean = grouped.mean(dim=2, keepdim=True)
    variance = (grouped.square().mean(dim=2, keepdim=True) - mean.square()).clamp(min=0)
    naive = torch.sigmoid(block.w * ((grouped - mean) / (variance + 1e-5).sqrt()).flatten(1) + block.b)
    assert np.abs(naive.double().numpy() - exact).max() > 0.1  # what the input is made to tell apart


@pytest.mark.parametrize("groups", [None, 16])
def test_the_gate_of_a_16_bit_se_is_computed_in_float32(groups: int | None) -> None:
    torch.manual_seed(0)
    block = SqueezeExcitation(64, reduction=16, epsilon=1e-5, groups=groups).half().requires_grad_(False)
    x = coarse_contexts(torch.float16)
    assert block.gate(x).dtype == torch.float32
    assert np.abs(block.gate(x).double().numpy() - se_gate(x.double().numpy(), block)).max() < 1e-5
    assert block(x).dtype == torch.float16


def test_ablation_without_normalisation() -> None:
    block = LinearContextTransform(6, 3, epsilon=1e-5, normalize=False, w_init=-2.0, b_init=0.5)
    x = torch.randn(2, 6, 4, 5)
    assert torch.allclose(block.gate(x), torch.sigmoid(-2.0 * x.mean(dim=(2, 3)) + 0.5))


def test_ablation_without_transform() -> None:
    block = LinearContextTransform(6, 3, epsilon=1e-5, transform=False)
    x = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    assert not list(block.parameters())
    exact = sigmoid(normalized(x.numpy().mean(axis=(2, 3)), 3, 1e-5))
    np.testing.assert_allclose(block.gate(x).numpy(), exact, atol=1e-12)


def test_the_initial_gate_is_sigma_of_1_for_any_image() -> None:
    network = build_model(model_config("lct_resnet20"))
    for block in network.attention_blocks().values():
        gate = block.gate(torch.randn(3, block.channels, 5, 5))
        assert torch.equal(gate, torch.sigmoid(torch.ones(3, block.channels)))


@pytest.mark.parametrize(("w", "b"), [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0)])
def test_initial_values_of_table_5(w: float, b: float) -> None:
    blocks = build_model(model_config("lct_resnet20"), w_init=w, b_init=b).attention_blocks().values()
    assert len(blocks) == 9
    for block in blocks:
        assert isinstance(block, LinearContextTransform)
        assert bool((block.w == w).all())
        assert bool((block.b == b).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("arch", ["lct_resnet20", "se_plus_resnet20"])
def test_training_has_the_gradients_of_autograd_alone(
    arch: str, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    """To the bit, though the context's gradient is never written out at the size of X."""
    block = random_network(model_config(arch)).attention_blocks()["layer2.1.attn"].requires_grad_(True)
    x = torch.randn(6, 32, 7, 5).to(dtype).to(memory_format=layout).requires_grad_()
    above = torch.randn(6, 32, 7, 5).to(dtype)
    answers = block(x), x * block.gate(x).to(dtype)[:, :, None, None]
    gradients = [torch.autograd.grad(y, [x, *block.parameters()], above) for y in answers]
    for ours, plain in zip(*gradients, strict=True):
        assert torch.equal(ours, plain)
        assert bool((ours != 0).any())


def test_a_network_in_training_is_traced_to_plain_operators() -> None:
    network = build_model(model_config("lct_resnet20", num_classes=3)).eval()
    assert torch.is_grad_enabled()
    program = torch.export.export(network, (torch.zeros(2, 3, 32, 32),))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert {target.split(".")[0] for target in targets} == {"aten"}


@pytest.mark.parametrize("group", [0, 2, 7])
def test_a_gate_depends_on_its_own_group_alone(group: int) -> None:
    block, x = random_lct(32, 8), torch.randn(2, 32, 6, 6)
    changed = x.clone()
    changed[:, 4 * group : 4 * group + 2] += 3.0
    same = torch.ones(32, dtype=torch.bool)
    same[4 * group : 4 * group + 4] = False
    before, after = block.gate(x), block.gate(changed)
    assert torch.equal(before[:, same], after[:, same])
    assert bool((before[:, ~same] != after[:, ~same]).all())


@pytest.mark.parametrize(("arch", "last"), [("lct_resnet20", 2), ("lct_resnet26", 3)])
def test_attention_stands_between_the_last_batchnorm_and_the_addition(arch: str, last: int) -> None:
    network = random_network(model_config(arch, num_classes=3))
    for name in ("layer1.1", "layer2.0"):
        block = network.get_submodule(name)
        convolutions = [block.get_submodule(f"conv{i}") for i in range(1, last + 1)]
        norms = [block.get_submodule(f"bn{i}") for i in range(1, last + 1)]
        attention = network.attention_blocks()[f"{name}.attn"]
        assert isinstance(attention, LinearContextTransform)
        x = torch.randn(2, *next(block.parameters()).shape[1:2], 8, 8)
        branch = x
        for convolution, norm in zip(convolutions[:-1], norms[:-1], strict=True):
            branch = torch.relu(norm(convolution(branch)))
        branch = norms[-1](convolutions[-1](branch))
        gate = torch.tensor(lct_gate(branch.double().numpy(), attention)).float()[:, :, None, None]
        identity = block.get_submodule("downsample")(x)
        torch.testing.assert_close(block(x), torch.relu(branch * gate + identity))

        nn.init.zeros_(attention.w)
        nn.init.constant_(attention.b, -1000.0)  # σ is 0: nothing of the branch is left
        assert torch.equal(block(x), torch.relu(identity))


def torchvision_keys(blocks: tuple[int, ...], convolutions: int) -> list[str]:
    """The names in torchvision's ResNet state dicts, in their order."""
    statistics = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    keys = ["conv1.weight", *(f"bn1.{name}" for name in statistics)]
    for layer, count in enumerate(blocks, start=1):
        for block in range(count):
            prefix = f"layer{layer}.{block}"
            for index in range(1, convolutions + 1):
                keys += [f"{prefix}.conv{index}.weight", *(f"{prefix}.bn{index}.{n}" for n in statistics)]
            if block == 0 and (layer > 1 or convolutions == 3):
                keys += [f"{prefix}.downsample.0.weight", *(f"{prefix}.downsample.1.{n}" for n in statistics)]
    return [*keys, "fc.weight", "fc.bias"]


@pytest.mark.parametrize(
    ("arch", "blocks", "convolutions", "tensors", "parameters"),
    [
        ("resnet18", (2, 2, 2, 2), 2, 122, 11_689_512),
        ("resnet34", (3, 4, 6, 3), 2, 218, 21_797_672),
        ("resnet50", (3, 4, 6, 3), 3, 320, 25_557_032),
        ("resnet101", (3, 4, 23, 3), 3, 626, 44_549_160),
        ("resnet152", (3, 8, 36, 3), 3, 932, 60_192_808),
    ],
)
def test_plain_networks_have_torchvisions_state_dict(
    arch: str, blocks: tuple[int, ...], convolutions: int, tensors: int, parameters: int
) -> None:
    with torch.device("meta"):
        network = build_model(model_config(arch))
    assert list(network.state_dict()) == torchvision_keys(blocks, convolutions)
    assert len(network.state_dict()) == tensors
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_shapes_of_resnet50() -> None:
    with torch.device("meta"):
        network = build_model(model_config("resnet50"))
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    assert len(list(network.parameters())) == 161
    assert shapes["conv1.weight"] == (64, 3, 7, 7)
    assert shapes["layer1.0.conv1.weight"] == (64, 64, 1, 1)
    assert shapes["layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
    assert shapes["layer2.0.conv2.weight"] == (128, 128, 3, 3)
    assert shapes["layer4.2.conv3.weight"] == (2048, 512, 1, 1)
    assert shapes["layer4.2.bn3.running_var"] == (2048,)
    assert shapes["fc.weight"] == (1000, 2048)


def test_attention_only_adds_keys() -> None:
    plain = set(build_model(model_config("resnet18")).state_dict())
    for arch, names in (
        ("lct_resnet18", ("w", "b")),
        ("se_resnet18", ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")),
    ):
        keys = set(build_model(model_config(arch)).state_dict())
        assert keys - plain == {f"layer{s}.{i}.attn.{n}" for s in (1, 2, 3, 4) for i in (0, 1) for n in names}
        assert plain < keys


@pytest.mark.parametrize(
    ("arch", "placement", "strides"),
    [
        ("resnet26", "v1.5", [1, 2, 1]),
        ("resnet26", "caffe", [2, 1, 1]),
        ("resnet18", "v1.5", [2, 1]),
        ("resnet18", "caffe", [2, 1]),
    ],
)
def test_stride_placement(arch: str, placement: StridePlacement, strides: list[int]) -> None:
    with torch.device("meta"):
        network, x = build_model(model_config(arch, stride_placement=placement)), torch.zeros(2, 64, 8, 8)
    for stage in (2, 3, 4):
        convolutions = [network.get_submodule(f"layer{stage}.0.conv{i + 1}") for i in range(len(strides))]
        assert [c.stride for c in convolutions if isinstance(c, nn.Conv2d)] == [(s, s) for s in strides]
    stages = [network.get_submodule(f"layer{s}") for s in (1, 2, 3, 4)]
    assert [(x := stage(x)).shape[2] for stage in stages] == [8, 4, 2, 1]


def test_resnet20_is_the_three_stage_network_for_small_images() -> None:
    """He et al. 2015, §4.2: a 3×3 stem, three stages of three blocks, no pooling before them."""
    with torch.device("meta"):
        network, image = build_model(model_config("resnet20", num_classes=10)), torch.zeros(2, 3, 32, 32)
    assert sum(p.numel() for p in network.parameters()) == 272_474
    x = network.get_submodule("conv1")(image)
    shapes = [tuple(x.shape[1:]), *(tuple((x := stage(x)).shape[1:]) for stage in network.stages)]
    assert shapes == [(16, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8)]
    assert network(image[:, :, :28, :28]).shape == (2, 10)
    assert isinstance(network.get_submodule("maxpool"), nn.Identity)
