"""Each attention module replaced by one that traces to a single node of domain `lct`."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from exporters.functions import (
    DOMAIN,
    DOMAIN_VERSION,
    LINEAR_CONTEXT_TRANSFORM,
    NORMALIZED_SQUEEZE_EXCITATION,
    SQUEEZE_EXCITATION,
)
from lct_deploy.manifest import Miss
from lct_deploy.models import Attention, Backbone, LinearContextTransform, SqueezeExcitation

Network = TypeVar("Network", bound=Backbone)

Attributes = dict[
    str, int | float | str | bool | Sequence[int] | Sequence[float] | Sequence[str] | Sequence[bool]
]


class AttentionNode(nn.Module):
    """Stands in for an attention while tracing: emits `op(X, *parameters)` and computes nothing."""

    def __init__(self, op: str, parameters: list[Tensor], attributes: Attributes) -> None:
        super().__init__()
        self.op, self.attributes = op, attributes
        self.inputs = nn.ParameterList(parameters)

    def forward(self, x: Tensor) -> Tensor:
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{self.op}",
            (x, *self.inputs),
            attrs=self.attributes,
            dtype=x.dtype,
            shape=x.shape,
            version=DOMAIN_VERSION,
        )


@dataclass(frozen=True, kw_only=True)
class Replaced(Generic[Network]):
    """A network ready to trace, and the blocks that had to stay as they are."""

    network: Network
    ops: dict[str, str]
    misses: tuple[Miss, ...]


def replace_attention(network: Network) -> Replaced[Network]:
    """A copy of `network` whose attention modules emit nodes; those that cannot are misses."""
    replaced = copy.deepcopy(network)
    ops: dict[str, str] = {}
    misses: list[Miss] = []
    for layer, module in network.attention_blocks().items():
        node = _node(module)
        if isinstance(node, str):
            misses.append(Miss(layer=layer, reason=node))
        else:
            replaced.set_submodule(layer, node)
            ops[layer] = node.op
    return Replaced(network=replaced, ops=ops, misses=tuple(misses))


def _node(module: Attention) -> AttentionNode | str:
    """The node for an attention module, or the reason why there is none."""
    return _lct_node(module) if isinstance(module, LinearContextTransform) else _se_node(module)


def _lct_node(module: LinearContextTransform) -> AttentionNode | str:
    if not module.normalize:
        return f"built without normalisation; {DOMAIN}::{LINEAR_CONTEXT_TRANSFORM} always normalises"
    ones, zeros = torch.ones(module.channels), torch.zeros(module.channels)
    w, b = (module.w, module.b) if module.transform else (ones, zeros)
    return AttentionNode(LINEAR_CONTEXT_TRANSFORM, [w, b], _group_attributes(module.groups, module.epsilon))


def _se_node(module: SqueezeExcitation) -> AttentionNode:
    parameters: list[Tensor] = [module.fc1.weight, module.fc1.bias, module.fc2.weight, module.fc2.bias]
    if module.groups is None:
        return AttentionNode(SQUEEZE_EXCITATION, parameters, {})
    attributes = _group_attributes(module.groups, module.epsilon)
    return AttentionNode(NORMALIZED_SQUEEZE_EXCITATION, parameters, attributes)


def _group_attributes(groups: int, epsilon: float) -> Attributes:
    return {"groups": groups, "epsilon": epsilon}
