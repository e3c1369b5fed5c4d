"""Parameters and multiply-adds as Tables 1 and 6 of the paper count them, from the configuration alone.

Convolutions and linear layers count their multiplications (biases free), a BatchNorm 2 per
element, a ReLU 1 per element, pooling its input's elements; an attention counts its pooling input
and, for SE, its two linear layers. The tests count the layers of the networks themselves.
"""

import math
from dataclasses import dataclass

from lct_deploy.architecture import (
    BackboneConfig,
    ModelConfig,
    arch_name,
    arch_names,
    model_config,
    parse_arch,
)

Size = tuple[int, int]  # height and width

# The input that Table 6's figures belong to, which is not the 1333x800 of the paper's text.
DETECTION_SIZE: Size = (1024, 1024)


@dataclass(frozen=True, kw_only=True)
class Cost:
    parameters: int = 0
    multiply_adds: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            parameters=self.parameters + other.parameters,
            multiply_adds=self.multiply_adds + other.multiply_adds,
        )

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(
            parameters=self.parameters - other.parameters,
            multiply_adds=self.multiply_adds - other.multiply_adds,
        )


@dataclass(frozen=True, kw_only=True)
class CostRow:
    """One line of `lct-deploy models`; multiply-adds for one image of `image_size` pixels."""

    arch: str
    image_size: int
    parameters: int
    multiply_adds: int


@dataclass(frozen=True, kw_only=True)
class BackboneRow:
    """One line of `lct-deploy models --backbone`, for one image; `added_…` is what its attention costs."""

    arch: str
    height: int
    width: int
    parameters: int
    multiply_adds: int
    added_parameters: int
    added_multiply_adds: int


def cost_table() -> list[CostRow]:
    """Every architecture with 1000 classes (10 for small images)."""
    rows: list[CostRow] = []
    for arch in arch_names():
        family, _ = parse_arch(arch)
        cost = model_cost(model_config(arch, num_classes=10 if family.small_stem else 1000))
        rows.append(
            CostRow(
                arch=arch,
                image_size=family.image_size,
                parameters=cost.parameters,
                multiply_adds=cost.multiply_adds,
            )
        )
    return rows


def backbone_table(size: Size = DETECTION_SIZE) -> list[BackboneRow]:
    """Every architecture that gives c2 to c5, without its classifier, on an image of `size`."""
    rows: list[BackboneRow] = []
    for arch in arch_names():
        family, _ = parse_arch(arch)
        if not family.has_features:
            continue
        cost = backbone_cost(model_config(arch), size)
        added = cost - backbone_cost(model_config(arch_name(family.depth, "none")), size)
        rows.append(
            BackboneRow(
                arch=arch,
                height=size[0],
                width=size[1],
                parameters=cost.parameters,
                multiply_adds=cost.multiply_adds,
                added_parameters=added.parameters,
                added_multiply_adds=added.multiply_adds,
            )
        )
    return rows


def model_cost(config: ModelConfig, *, image_size: int | None = None) -> Cost:
    """Cost of one image of `image_size` pixels (default: the family's own)."""
    side = image_size or config.family.image_size
    cost, size = _stages(config, (side, side))
    channels = config.family.stage_channels[-1]
    return cost + _elements(channels, size) + _linear(channels, config.num_classes)


def backbone_cost(config: BackboneConfig, size: Size) -> Cost:
    """Cost of stem and stages, all that a detector takes of a network, for one image of `size`."""
    return _stages(config, size)[0]


def _stages(config: BackboneConfig, size: Size) -> tuple[Cost, Size]:
    """Cost of stem and stages, and the size of what the last stage gives."""
    family = config.family
    channels = family.widths[0]
    if family.small_stem:
        cost = _convolution(3, channels, 3, size)
    else:
        size = _halved(size)
        cost = _convolution(3, channels, 7, size) + _elements(channels, size)
        size = _halved(size)
    for stage, count in enumerate(family.blocks):
        for position in range(count):
            inner = _halved(size) if stage > 0 and position == 0 else size
            cost += _block(config, channels, family.widths[stage], size, inner)
            size, channels = inner, family.stage_channels[stage]
    return cost, size


def _block(config: BackboneConfig, inputs: int, width: int, before: Size, after: Size) -> Cost:
    """A residual block that takes images of the size `before` to `after`."""
    outputs = width * config.family.expansion
    if config.family.block == "basic":
        cost = _convolution(inputs, width, 3, after) + _convolution(width, outputs, 3, after)
    else:
        first = after if config.stride_placement == "caffe" else before
        cost = (
            _convolution(inputs, width, 1, first)
            + _convolution(width, width, 3, after)
            + _convolution(width, outputs, 1, after)
        )
    if inputs != outputs or before != after:
        cost += _convolution(inputs, outputs, 1, after, relu=False)
    return cost + _attention(config, outputs, after)


def _attention(config: BackboneConfig, channels: int, size: Size) -> Cost:
    attention, pooling = config.attention, _elements(channels, size)
    if attention.kind == "none":
        return Cost()
    if attention.kind == "lct":
        return pooling + Cost(parameters=2 * channels if attention.transform else 0)
    hidden = max(1, channels // attention.reduction)
    return pooling + _linear(channels, hidden) + _linear(hidden, channels)


def _convolution(inputs: int, outputs: int, kernel: int, size: Size, *, relu: bool = True) -> Cost:
    """With its BatchNorm and, for all but a shortcut's, the ReLU that follows or ends the block."""
    parameters = kernel * kernel * inputs * outputs + 2 * outputs
    return Cost(parameters=parameters, multiply_adds=math.prod(size) * (parameters + outputs * relu))


def _linear(inputs: int, outputs: int) -> Cost:
    return Cost(parameters=(inputs + 1) * outputs, multiply_adds=inputs * outputs)


def _elements(channels: int, size: Size) -> Cost:
    return Cost(multiply_adds=channels * math.prod(size))


def _halved(size: Size) -> Size:
    """What a stride of 2 leaves, for every kernel and padding used here."""
    return (size[0] + 1) // 2, (size[1] + 1) // 2
