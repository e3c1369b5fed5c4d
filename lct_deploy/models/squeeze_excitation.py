"""Squeeze-and-Excitation (Hu et al., CVPR 2018), equation (1) of the LCT paper, and its SE+.

    Y = X ⊙ σ(W₂ ReLU(W₁ g(X)))                 g: global average pooling; both layers have biases

SE+ (the LCT paper's Table 4) normalises g(X) within channel groups before W₁.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from lct_deploy.models.lct import context_and_features, global_context, normalize_groups


class SqueezeExcitation(nn.Module):
    """SE attention with a hidden layer of C / `reduction` units; with `groups` it is SE+."""

    def __init__(self, channels: int, *, reduction: int, epsilon: float, groups: int | None = None) -> None:
        super().__init__()
        self.channels, self.groups, self.epsilon = channels, groups, epsilon
        hidden = max(1, channels // reduction)
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def gate(self, x: Tensor) -> Tensor:
        """σ(W₂ ReLU(W₁ g(X))) for X of shape (N, C, H, W): (N, C), at least float32."""
        return self._gate(global_context(x))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → the same shape and dtype."""
        z, x = context_and_features(x)
        return x * self._gate(z).to(x.dtype)[:, :, None, None]

    def _gate(self, z: Tensor) -> Tensor:
        if self.groups is not None:
            z = normalize_groups(z, self.groups, self.epsilon)
        hidden = torch.relu(_linear(z, self.fc1))
        return torch.sigmoid(_linear(hidden, self.fc2))

    def extra_repr(self) -> str:
        return f"channels={self.channels}, groups={self.groups}"


def _linear(z: Tensor, layer: nn.Linear) -> Tensor:
    """`layer` in z's dtype, so that a half-precision network keeps its gate in float32."""
    return functional.linear(z, layer.weight.to(z.dtype), layer.bias.to(z.dtype))
