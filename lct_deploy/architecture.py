"""Names and shapes of the networks, without torch: what the CLI, checkpoints and bundles agree on.

An architecture name is `[se_|se_plus_|lct_]resnetD`. ResNet-18/34 use basic blocks, 26/50/101/152
bottlenecks; ResNet-20 is the three-stage network for 28-64 pixel images (He et al. 2015, §4.2).
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from lct_deploy.errors import ArchitectureError
from lct_deploy.suggest import did_you_mean
from lct_deploy.validation import validate

AttentionKind = Literal["none", "se", "se_plus", "lct"]
StridePlacement = Literal["v1.5", "caffe"]
BlockKind = Literal["basic", "bottleneck"]
FeatureName = Literal["c2", "c3", "c4", "c5"]

DEFAULT_EPSILON = 1e-5
DEFAULT_GROUPS = 64  # Table 2 of the paper
MIN_GROUP_SIZE = 2  # one channel a group normalises to zero: the gate would be constant
SAFE_GROUP_SIZE = 4  # the paper's G = 128 (two channels a group in stage 1) did not converge
SE_REDUCTION = 16

# What a feature pyramid takes: the outputs of stages 1 to 4, smaller than the image by 4, 8, 16 and 32.
FEATURES: tuple[FeatureName, ...] = get_args(FeatureName)

_PREFIXES: dict[AttentionKind, str] = {
    "none": "",
    "se": "se_",
    "se_plus": "se_plus_",
    "lct": "lct_",
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """One depth of ResNet: what its weights look like, whatever the attention."""

    depth: int
    block: BlockKind
    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    small_stem: bool = False

    @property
    def expansion(self) -> int:
        return 4 if self.block == "bottleneck" else 1

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels that each stage's attention sees."""
        return tuple(width * self.expansion for width in self.widths)

    @property
    def attention_blocks(self) -> int:
        return sum(self.blocks)

    @property
    def has_features(self) -> bool:
        """Whether its stages give c2 to c5; a small stem leaves them at strides 1, 2 and 4."""
        return not self.small_stem

    @property
    def image_size(self) -> int:
        return 32 if self.small_stem else 224


_WIDTHS = (64, 128, 256, 512)
FAMILIES: dict[int, Family] = {
    family.depth: family
    for family in (
        Family(depth=18, block="basic", blocks=(2, 2, 2, 2), widths=_WIDTHS),
        Family(depth=20, block="basic", blocks=(3, 3, 3), widths=(16, 32, 64), small_stem=True),
        Family(depth=26, block="bottleneck", blocks=(2, 2, 2, 2), widths=_WIDTHS),
        Family(depth=34, block="basic", blocks=(3, 4, 6, 3), widths=_WIDTHS),
        Family(depth=50, block="bottleneck", blocks=(3, 4, 6, 3), widths=_WIDTHS),
        Family(depth=101, block="bottleneck", blocks=(3, 4, 23, 3), widths=_WIDTHS),
        Family(depth=152, block="bottleneck", blocks=(3, 8, 36, 3), widths=_WIDTHS),
    )
}


def arch_name(depth: int, attention: AttentionKind) -> str:
    return f"{_PREFIXES[attention]}resnet{depth}"


def arch_names() -> list[str]:
    """Every architecture, by depth and then by attention."""
    return [arch_name(depth, kind) for depth in FAMILIES for kind in _PREFIXES]


def parse_arch(name: str) -> tuple[Family, AttentionKind]:
    """The family and attention behind an architecture name.

    Raises ArchitectureError for a name that does not exist, with the closest one.
    """
    for depth, family in FAMILIES.items():
        for kind in _PREFIXES:
            if name == arch_name(depth, kind):
                return family, kind
    suggestion = did_you_mean(name.lower().replace("-", "_"), arch_names())
    raise ArchitectureError(
        f"unknown architecture {name!r}{suggestion}",
        hint="`lct-deploy models` lists all architectures",
    )


class AttentionConfig(BaseModel):
    """What a channel attention computes; the paper's ablations are `normalize` and `transform`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: AttentionKind
    groups: int = Field(default=DEFAULT_GROUPS, ge=1)
    epsilon: float = Field(default=DEFAULT_EPSILON, gt=0, allow_inf_nan=False)
    reduction: int = Field(default=SE_REDUCTION, ge=1)
    normalize: bool = True
    transform: bool = True

    @property
    def has_groups(self) -> bool:
        """Whether the group count changes what is computed."""
        return self.kind == "se_plus" or (self.kind == "lct" and self.normalize)


class BackboneConfig(BaseModel):
    """All that is needed to build a network's stem and stages."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    arch: str
    attention: AttentionConfig
    stride_placement: StridePlacement = "v1.5"

    @property
    def family(self) -> Family:
        return parse_arch(self.arch)[0]


class ModelConfig(BackboneConfig):
    """All that is needed to build a classifier whose weights a checkpoint holds."""

    num_classes: int = Field(ge=1)


def default_groups(family: Family) -> int:
    """64, or the largest count that leaves the narrowest stage four channels a group."""
    return min(DEFAULT_GROUPS, min(family.stage_channels) // SAFE_GROUP_SIZE)


def legal_groups(channels: tuple[int, ...]) -> list[int]:
    """Group counts that divide every stage and leave at least two channels a group."""
    common, narrowest = math.gcd(*channels), min(channels)
    return [g for g in range(1, narrowest // MIN_GROUP_SIZE + 1) if common % g == 0]


def check_groups(groups: int, channels: int, *, layer: str, legal: list[int]) -> None:
    """Raise ArchitectureError unless `groups` splits `channels` into groups of two or more.

    `layer` and `legal` only serve the message: where it fails and what would be accepted.
    """
    choices = f"legal group counts are {', '.join(map(str, legal))}"
    if groups < 1 or channels % groups:
        raise ArchitectureError(
            f"{layer}: {channels} channels do not divide into {groups} groups", hint=choices
        )
    if channels // groups < MIN_GROUP_SIZE:
        raise ArchitectureError(
            f"{layer}: {groups} groups of {channels} channels leave one channel a group, "
            "whose normalised context is always zero: the gate would be constant",
            hint=choices,
        )


def model_config(
    arch: str,
    *,
    num_classes: int = 1000,
    groups: int | None = None,
    epsilon: float = DEFAULT_EPSILON,
    normalize: bool = True,
    transform: bool = True,
    stride_placement: StridePlacement = "v1.5",
) -> ModelConfig:
    """A checked configuration, with the family's default for `groups`.

    Raises ArchitectureError for an unknown name or a group count that does not fit a stage,
    UsageError for a value that no network can have.
    """
    family, kind = parse_arch(arch)
    attention = validate(
        AttentionConfig,
        kind=kind,
        groups=default_groups(family) if groups is None else groups,
        epsilon=epsilon,
        normalize=normalize,
        transform=transform,
    )
    config = validate(
        ModelConfig,
        arch=arch,
        num_classes=num_classes,
        attention=attention,
        stride_placement=stride_placement,
    )
    check_config(config)
    return config


def check_config(config: BackboneConfig) -> None:
    """Raise ArchitectureError where the name and the attention differ, or groups do not fit a stage."""
    family, kind = parse_arch(config.arch)
    if kind != config.attention.kind:
        raise ArchitectureError(f"{config.arch} has attention {kind!r}, not {config.attention.kind!r}")
    if not config.attention.has_groups:
        return
    legal = legal_groups(family.stage_channels)
    for stage, channels in enumerate(family.stage_channels, start=1):
        check_groups(config.attention.groups, channels, layer=f"layer{stage}.0.attn", legal=legal)


def small_group_warning(config: BackboneConfig) -> str | None:
    """A sentence for group sizes that the paper found hard to train, or None."""
    family, attention = config.family, config.attention
    size = min(family.stage_channels) // attention.groups
    if not attention.has_groups or size >= SAFE_GROUP_SIZE:
        return None
    return (
        f"{attention.groups} groups leave {size} channels a group in the narrowest stage; "
        "the paper's network with 2 did not converge (Table 2)"
    )
