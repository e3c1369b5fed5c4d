"""Linear Context Transform (Ruan et al., AAAI 2020, arXiv:1909.03834), equations (2)-(5).

z = mean over H, W of X                     context aggregation
ẑ = (z − μ_g) / sqrt(var_g + ε)             (2), (3): biased variance over a group's m = C/G
a = w ⊙ ẑ + b                               (4)
Y = X ⊙ σ(a)                                (5)
"""

from typing import Any

import torch
from torch import Tensor, nn


def global_context(x: Tensor) -> Tensor:
    """Mean over the spatial dimensions: (N, C, H, W) → (N, C), at least float32.

    Half-precision inputs are accumulated in float32: the gate is never computed in 16 bits.
    """
    return x.mean(dim=(2, 3), dtype=torch.promote_types(x.dtype, torch.float32))


def context_and_features(x: Tensor) -> tuple[Tensor, Tensor]:
    """`global_context` of x and x itself, for what needs both; the same numbers, cheaper to train.

    Autograd alone would write the context's gradient out to X's size in float32, convert it, and add
    it to the gradient that comes through equation (5). Here the addition broadcasts it.
    """
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    if traced or not torch.is_grad_enabled():
        return global_context(x), x
    return _ContextAndFeatures.apply(x)


class _ContextAndFeatures(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return global_context(x), x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        (x,) = inputs
        ctx.pixels, ctx.dtype = x.shape[2] * x.shape[3], x.dtype

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        of_context, of_features = gradients
        return of_features + (of_context / ctx.pixels).to(ctx.dtype)[:, :, None, None]


def normalize_groups(z: Tensor, groups: int, epsilon: float) -> Tensor:
    """Equations (2) and (3): normalise a context (N, C) within `groups` groups of channels.

    The variance is biased and taken of the centred values: E[z²] − E[z]² cancels in float32.
    """
    grouped = z.unflatten(1, (groups, -1))
    centred = grouped - grouped.mean(dim=2, keepdim=True)
    variance = centred.square().mean(dim=2, keepdim=True)
    return (centred / torch.sqrt(variance + epsilon)).flatten(1)


class LinearContextTransform(nn.Module):
    """Channel attention with 2C parameters; channels see each other only within their group.

    `normalize=False` drops equations (2)-(3), `transform=False` equation (4) (Table 3's ablations).
    `w_init` and `b_init` are Table 5's; the paper's default is 0 and 1.
    """

    def __init__(
        self,
        channels: int,
        groups: int,
        *,
        epsilon: float,
        normalize: bool = True,
        transform: bool = True,
        w_init: float = 0.0,
        b_init: float = 1.0,
    ) -> None:
        super().__init__()
        self.channels, self.groups, self.epsilon = channels, groups, epsilon
        self.normalize, self.transform = normalize, transform
        if transform:
            self.w = nn.Parameter(torch.full((channels,), w_init))
            self.b = nn.Parameter(torch.full((channels,), b_init))

    def gate(self, x: Tensor) -> Tensor:
        """σ(a) for X of shape (N, C, H, W): (N, C), float32 (float64 for a float64 X)."""
        return self._gate(global_context(x))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → the same shape and dtype."""
        z, x = context_and_features(x)
        return x * self._gate(z).to(x.dtype)[:, :, None, None]

    def _gate(self, z: Tensor) -> Tensor:
        a = normalize_groups(z, self.groups, self.epsilon) if self.normalize else z
        if self.transform:
            a = self.w.to(a.dtype) * a + self.b.to(a.dtype)
        return torch.sigmoid(a)

    def extra_repr(self) -> str:
        return f"channels={self.channels}, groups={self.groups}, epsilon={self.epsilon}"
