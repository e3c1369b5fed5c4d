"""What weights tell about their network: depth, attention, classes, SE's reduction."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from lct_deploy.architecture import (
    FAMILIES,
    SE_REDUCTION,
    AttentionConfig,
    AttentionKind,
    Family,
    arch_name,
)
from lct_deploy.errors import CheckpointError

_BLOCK = re.compile(r"^layer(\d+)\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class Inferred:
    """Facts read off the tensors' names and shapes; SE stands for SE+ too, which looks the same."""

    family: Family
    attention: AttentionKind
    reduction: int

    @property
    def arch(self) -> str:
        return arch_name(self.family.depth, self.attention)

    def shows(self, attention: AttentionConfig) -> bool:
        """Whether this attention leaves such weights; LCT without its transform leaves none."""
        if attention.kind == "lct" and not attention.transform:
            return self.attention == "none"
        return self.attention == ("se" if attention.kind == "se_plus" else attention.kind)


def infer(tensors: Mapping[str, Tensor]) -> Inferred:
    """Raises CheckpointError for weights that are no ResNet of ours."""
    return Inferred(family=_family(tensors), attention=_attention(tensors), reduction=_reduction(tensors))


def infer_classes(tensors: Mapping[str, Tensor]) -> int:
    """The number of classes; raises CheckpointError where there is no classifier."""
    head = tensors.get("fc.weight")
    if head is None or head.ndim != 2 or head.numel() == 0:
        raise CheckpointError(
            "no classifier found: the checkpoint has no fc.weight of shape (classes, channels)",
            hint=f"its first keys are {', '.join(sorted(tensors)[:5]) or 'none'}; "
            "of a detector, lct-deploy export --features c2,c3,c4,c5 takes the backbone",
        )
    return head.shape[0]


def _family(tensors: Mapping[str, Tensor]) -> Family:
    counts: dict[int, int] = {}
    for match in filter(None, map(_BLOCK.match, tensors)):
        stage, block = int(match[1]), int(match[2])
        counts[stage] = max(counts.get(stage, 0), block + 1)
    blocks = tuple(counts[stage] for stage in sorted(counts))
    kind = "bottleneck" if any(".conv3." in key for key in tensors) else "basic"
    for family in FAMILIES.values():
        if family.blocks == blocks and family.block == kind:
            return family
    known = ", ".join(f"{f.depth}: {f.block} {list(f.blocks)}" for f in FAMILIES.values())
    raise CheckpointError(
        f"no known ResNet has {kind} blocks {list(blocks)}", hint=f"known depths are {known}"
    )


def _attention(tensors: Mapping[str, Tensor]) -> AttentionKind:
    if any(key.endswith((".attn.w", ".attn.b")) for key in tensors):
        return "lct"
    return "se" if any(".attn.fc1." in key for key in tensors) else "none"


def _reduction(tensors: Mapping[str, Tensor]) -> int:
    """Of the widest layer: in a narrow one, rounding hides it."""
    layers = [
        tuple(tensor.shape)
        for key, tensor in tensors.items()
        if key.endswith(".attn.fc1.weight") and tensor.ndim == 2 and tensor.numel()
    ]
    if not layers:
        return SE_REDUCTION
    hidden, channels = max(layers, key=lambda shape: shape[1])
    return max(1, channels // hidden)
