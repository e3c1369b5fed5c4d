"""Parameters and multiply-adds as Table 1 of the paper counts them, from the configuration alone.

Convolutions and linear layers count their multiplications (biases free), a BatchNorm 2 per
element, a ReLU 1 per element, pooling its input's elements; an attention counts its pooling input
and, for SE, its two linear layers. The tests count the layers of the networks themselves.
"""

from dataclasses import dataclass

from lct_deploy.architecture import ModelConfig, arch_names, model_config, parse_arch


@dataclass(frozen=True, kw_only=True)
class Cost:
    parameters: int = 0
    multiply_adds: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            parameters=self.parameters + other.parameters,
            multiply_adds=self.multiply_adds + other.multiply_adds,
        )


@dataclass(frozen=True, kw_only=True)
class CostRow:
    """One line of `lct-deploy models`; multiply-adds for one image of `image_size` pixels."""

    arch: str
    image_size: int
    parameters: int
    multiply_adds: int


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


def model_cost(config: ModelConfig, *, image_size: int | None = None) -> Cost:
    """Cost of one image of `image_size` pixels (default: the family's own)."""
    family, size = config.family, image_size or config.family.image_size
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
    return cost + _elements(channels, size) + _linear(channels, config.num_classes)


def _block(config: ModelConfig, inputs: int, width: int, before: int, after: int) -> Cost:
    """A residual block that takes images of `before` pixels a side to `after`."""
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


def _attention(config: ModelConfig, channels: int, size: int) -> Cost:
    attention, pooling = config.attention, _elements(channels, size)
    if attention.kind == "none":
        return Cost()
    if attention.kind == "lct":
        return pooling + Cost(parameters=2 * channels if attention.transform else 0)
    hidden = max(1, channels // attention.reduction)
    return pooling + _linear(channels, hidden) + _linear(hidden, channels)


def _convolution(inputs: int, outputs: int, kernel: int, size: int, *, relu: bool = True) -> Cost:
    """With its BatchNorm and, for all but a shortcut's, the ReLU that follows or ends the block."""
    parameters = kernel * kernel * inputs * outputs + 2 * outputs
    return Cost(parameters=parameters, multiply_adds=size * size * (parameters + outputs * relu))


def _linear(inputs: int, outputs: int) -> Cost:
    return Cost(parameters=(inputs + 1) * outputs, multiply_adds=inputs * outputs)


def _elements(channels: int, size: int) -> Cost:
    return Cost(multiply_adds=channels * size * size)


def _halved(size: int) -> int:
    """What a stride of 2 leaves, for every kernel and padding used here."""
    return (size + 1) // 2
