"""What looks like attention and is none that has a node: a miss that says what is different."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from exporters.fusions.session import Session
from exporters.onnx_source import load_onnx, reference_logits
from lct_deploy.errors import ExportError
from lct_deploy.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from tests.test_fusions_spellings import (
    Lct,
    Net,
    Se,
    group_norm,
    load,
    mean_of_squares,
    noise,
    torch_export,
    var,
)

CHANNELS = 16


class Gate(nn.Module):
    """x * gate(x, module), with layers and parameters for any taste."""

    def __init__(self, gate: Callable[[Tensor, "Gate"], Tensor]) -> None:
        super().__init__()
        self.gate = gate
        self.w, self.b = nn.Parameter(torch.randn(CHANNELS)), nn.Parameter(torch.randn(CHANNELS))
        self.fc1, self.fc2 = nn.Linear(CHANNELS, 4), nn.Linear(4, CHANNELS)
        self.mix = nn.Linear(CHANNELS, CHANNELS)
        self.space = nn.Conv2d(2, 1, 3, padding=1)
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.eca = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x, self)
        return x * (gate[:, :, None, None] if gate.dim() == 2 else gate)


def lct(x: Tensor, m: Gate) -> Tensor:
    """a of a regular LCT with four groups."""
    return m.w * var(x.mean((2, 3)), 4, 1e-5) + m.b


def deviation_plus_epsilon(x: Tensor, m: Gate) -> Tensor:
    y = x.mean((2, 3)).unflatten(1, (4, -1))
    y = (y - y.mean(2, keepdim=True)) / (y.std(2, keepdim=True, unbiased=False) + 1e-3)
    return torch.sigmoid(m.w * y.flatten(1) + m.b)


def no_epsilon(x: Tensor, m: Gate) -> Tensor:
    y = x.mean((2, 3)).unflatten(1, (4, -1))
    y = (y - y.mean(2, keepdim=True)) / y.var(2, keepdim=True, unbiased=False).sqrt()
    return torch.sigmoid(m.w * y.flatten(1) + m.b)


def vanishing_epsilon(x: Tensor, m: Gate) -> Tensor:
    return torch.sigmoid(m.w * var(x.mean((2, 3)), 4, 1e-30) + m.b)


def variance_from_below(x: Tensor, m: Gate) -> Tensor:
    y = x.mean((2, 3)).unflatten(1, (4, -1))
    variance = y.var(2, keepdim=True, unbiased=False).clamp(min=1e-15)
    return torch.sigmoid(m.w * ((y - y.mean(2, keepdim=True)) / variance.sqrt()).flatten(1) + m.b)


def unequal_groups(x: Tensor, m: Gate) -> Tensor:
    z = x.mean((2, 3))
    y = torch.cat([group_norm(z[:, :6], 1, 1e-5), group_norm(z[:, 6:], 1, 1e-5)], dim=1)
    return torch.sigmoid(m.w * y + m.b)


def l2_norm(x: Tensor, m: Gate) -> Tensor:
    y = x.mean((2, 3)).unflatten(1, (4, -1))
    return torch.sigmoid(m.w * functional.normalize(y, dim=2).flatten(1) + m.b)


def se(x: Tensor, m: Gate, activation: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.sigmoid(m.fc2(activation(m.fc1(x.mean((2, 3))))))


def cbam_channels(x: Tensor, m: Gate) -> Tensor:
    def layers(z: Tensor) -> Tensor:
        return m.fc2(torch.relu(m.fc1(z)))

    return torch.sigmoid(layers(x.mean((2, 3))) + layers(x.amax((2, 3))))


def cbam_space(x: Tensor, m: Gate) -> Tensor:
    return torch.sigmoid(m.space(torch.cat([x.mean(1, True), x.amax(1, True)], dim=1)))


DECOYS: dict[str, tuple[Callable[[Tensor, Gate], Tensor], str]] = {
    "no normalisation": (
        lambda x, m: torch.sigmoid(m.w * x.mean((2, 3)) + m.b),
        "no normalisation in it: the gate is an affine function of the context",
    ),
    "efficient channel attention": (
        lambda x, m: torch.sigmoid(m.eca(x.mean((2, 3)).unsqueeze(1)).squeeze(1)),
        "no normalisation in it",
    ),
    "hard sigmoid": (lambda x, m: functional.hardsigmoid(lct(x, m)), "its gate is a hard sigmoid"),
    "hard sigmoid in parts": (
        lambda x, m: functional.relu6(lct(x, m) + 3) / 6,
        "its gate is a clipped line, a hard sigmoid",
    ),
    "hard sigmoid of the same slope": (
        lambda x, m: torch.clamp(lct(x, m) / 4 + 0.5, 0, 1),
        "its gate is a clipped line, a hard sigmoid",
    ),
    "tanh": (lambda x, m: torch.tanh(lct(x, m)), "its gate is Tanh, not a sigmoid"),
    "softmax": (lambda x, m: torch.softmax(lct(x, m), dim=1), "its gate is Softmax, not a sigmoid"),
    "twice the sigmoid": (lambda x, m: 2 * torch.sigmoid(lct(x, m)), "more than a sigmoid"),
    "no sigmoid": (lambda x, m: lct(x, m), "its gate is not a sigmoid (it ends in Add)"),
    "mixed over channels": (
        lambda x, m: torch.sigmoid(m.mix(var(x.mean((2, 3)), 4, 1e-5))),
        "the gate of channel 0 depends on channels outside its group (of 4)",
    ),
    "epsilon outside": (deviation_plus_epsilon, "but not as (z − μ) / sqrt(var + ε)"),
    "no epsilon": (no_epsilon, "without an ε"),
    "epsilon of nothing": (vanishing_epsilon, "it divides by the standard deviation without an ε"),
    "epsilon as a floor": (variance_from_below, "not as (z − μ) / sqrt(var + ε)"),
    "unequal groups": (unequal_groups, "not as (z − μ) / sqrt(var + ε) within equal groups"),
    "another norm": (l2_norm, "not as (z − μ) / sqrt(var + ε)"),
    "maximum": (
        lambda x, m: torch.sigmoid(m.w * var(x.amax((2, 3)), 4, 1e-5) + m.b),
        "its context is the maximum over H and W, not the mean",
    ),
    "mean and maximum": (cbam_channels, "its context takes a maximum over H and W, not the mean alone"),
    "mean of squares": (
        lambda x, m: torch.sigmoid(m.w * var(x.square().mean((2, 3)), 4, 1e-5) + m.b),
        "its context is not the mean over H and W",
    ),
    "mean over W": (
        lambda x, m: torch.sigmoid(x.mean(3, keepdim=True)),
        "its gate varies along H: the mean is over one spatial axis only",
    ),
    "spatial": (cbam_space, "spatial attention: one gate for each position"),
    "one for all": (
        lambda x, m: torch.sigmoid(x.mean((1, 2, 3), keepdim=True)),
        "one gate for all channels",
    ),
    "after a convolution": (
        lambda x, m: torch.sigmoid(m.w * var(m.conv(x).mean((2, 3)), 4, 1e-5) + m.b),
        "its context is not the mean of the tensor that it scales (Conv in between)",
    ),
    "se with silu": (
        lambda x, m: se(x, m, functional.silu),
        "Sigmoid stands between its layers; SqueezeExcitation has a ReLU there",
    ),
    "se with leaky relu": (lambda x, m: se(x, m, functional.leaky_relu), "LeakyRelu stands between"),
    "se with relu6": (lambda x, m: se(x, m, functional.relu6), "Clip stands between its layers"),
    "se of three layers": (
        lambda x, m: torch.sigmoid(m.fc2(torch.relu(m.fc1(torch.relu(m.mix(x.mean((2, 3)))))))),
        "what follows its ReLU is not one affine layer",
    ),
    "se of squares": (
        lambda x, m: torch.sigmoid(m.fc2(torch.relu(m.fc1(x.mean((2, 3)).square())))),
        "what precedes its first layer",
    ),
}


@pytest.mark.parametrize("decoy", DECOYS)
def test_a_decoy_is_a_miss_with_its_reason_and_stays_as_it_is(tmp_path: Path, decoy: str) -> None:
    torch.manual_seed(0)
    gate, reason = DECOYS[decoy]
    network = Net(CHANNELS, Lct(CHANNELS, 4, mean_of_squares), Gate(gate))
    source = load(torch_export(network, tmp_path / "net.onnx"))
    assert [block.layer for block in source.certificate.fused] == ["layer1.0.attn"]
    assert source.certificate.attention_blocks == 2
    (miss,) = source.certificate.misses
    assert miss.layer.startswith("layer1.1.attn")
    assert reason in miss.reason
    images = noise()
    logits = Session(source.model, threads=1).run(["logits"], images)["logits"]
    expected = reference_logits(source, images)
    assert np.abs(logits - expected).max() <= 2e-5 * np.abs(expected).max()


class SwappedResidual(nn.Module):
    """The branch's gate on the shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.attn = nn.Conv2d(CHANNELS, CHANNELS, 1), Lct(CHANNELS, 4, group_norm)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv(x)
        z = group_norm(branch.mean((2, 3)), 4, 1e-5)
        return x * torch.sigmoid(self.attn.w * z + self.attn.b)[:, :, None, None]


class TwoInputs(nn.Module):
    """A gate of one branch on another, neither made of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = (nn.Conv2d(CHANNELS, CHANNELS, 1) for _ in range(2))
        self.attn = Lct(CHANNELS, 4, group_norm)

    def forward(self, x: Tensor) -> Tensor:
        z = group_norm(self.left(x).mean((2, 3)), 4, 1e-5)
        return self.right(x) * torch.sigmoid(self.attn.w * z + self.attn.b)[:, :, None, None]


class Both(TwoInputs):
    """A gate of both branches on one."""

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x), self.right(x)
        z = group_norm(left.mean((2, 3)) + right.mean((2, 3)), 4, 1e-5)
        return right * torch.sigmoid(self.attn.w * z + self.attn.b)[:, :, None, None]


class Flattened(nn.Module):
    """The attention on a view (N, C, H·W)."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = Lct(CHANNELS, 4, group_norm)

    def forward(self, x: Tensor) -> Tensor:
        y = x.flatten(2)
        a = self.attn.w * group_norm(y.mean(2), 4, 1e-5) + self.attn.b
        return (y * torch.sigmoid(a).unsqueeze(2)).reshape(x.shape)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (SwappedResidual, "not the mean of the tensor that it scales"),
        (TwoInputs, "its gate is not made of the tensor that it scales"),
        (Both, "its gate is not made of the tensor that it scales: it depends on image"),
        (Flattened, "it scales a tensor of shape [N,16,64], not (N, C, H, W)"),
    ],
)
def test_a_gate_made_of_another_tensor(tmp_path: Path, module: type[nn.Module], reason: str) -> None:
    torch.manual_seed(0)
    network = Net(CHANNELS, Se(CHANNELS), module())
    source = load(torch_export(network, tmp_path / "net.onnx"))
    assert len(source.certificate.fused) == 1
    (miss,) = source.certificate.misses
    assert reason in miss.reason


class Bystanders(nn.Module):
    """Products that no one would call attention."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.scale = nn.InstanceNorm2d(CHANNELS), nn.Parameter(torch.randn(CHANNELS, 1, 1))
        self.conv = nn.Conv2d(CHANNELS, 2 * CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.silu(x) * self.scale
        x = functional.glu(self.conv(x), dim=1)
        variance, centre = torch.var_mean(x, dim=(2, 3), keepdim=True)
        x = (x - centre) * torch.rsqrt(variance + 1e-5)
        x = functional.hardswish(x)
        squares = x.square().mean((2, 3), keepdim=True)
        return x * torch.rsqrt(squares + 1e-5)


def test_activations_and_normalisations_are_not_counted(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Net(CHANNELS, Bystanders(), Se(CHANNELS))
    certificate = load(torch_export(network, tmp_path / "net.onnx")).certificate
    assert (certificate.attention_blocks, certificate.misses) == (1, ())


def test_a_declined_gate_that_is_expanded_runs_any_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    expanded = Gate(lambda x, m: functional.hardsigmoid(lct(x, m))[:, :, None, None].expand_as(x))
    network = Net(CHANNELS, expanded, Se(CHANNELS))
    source = load(torch_export(network, tmp_path / "net.onnx", dynamic=True))
    assert len(source.certificate.misses) == 1
    logits = Session(source.model, threads=1).run(["logits"], noise())["logits"]
    assert np.allclose(logits, reference_logits(source, noise()), rtol=1e-4, atol=1e-5)


def test_a_gate_that_never_moves_has_no_groups_to_read_but_those_the_graph_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    named, nameless = (
        Lct(CHANNELS, 4, mean_of_squares),
        Gate(lambda x, m: torch.sigmoid(0 * x.mean((2, 3)) + m.b)),
    )
    nn.init.zeros_(named.w)
    source = load(torch_export(Net(CHANNELS, named, nameless), tmp_path / "net.onnx"))
    assert [block.layer for block in source.certificate.fused] == ["layer1.0.attn"]
    assert source.attention is not None
    assert (source.attention.groups, source.attention.epsilon) == (4, 1e-5)
    assert "its groups cannot be told" in source.certificate.misses[0].reason


def test_a_graph_without_attention_says_what_was_looked_for(tmp_path: Path) -> None:
    path = torch_export(Net(CHANNELS, nn.Identity()), tmp_path / "net.onnx")
    with pytest.raises(ExportError, match="no attention found") as error:
        load_onnx(path, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert "(LCT)" in str(error.value)
    assert "(SE)" in str(error.value)
