"""ResNet (He et al. 2015) with a channel attention after the last BatchNorm of each branch.

Keys are torchvision's; the attention of a block is its `attn`. "v1.5" puts a bottleneck's stride
on the 3×3 convolution as torchvision does, "caffe" on the first 1×1 as the original did.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from lct_deploy.architecture import (
    AttentionConfig,
    BackboneConfig,
    Family,
    ModelConfig,
    StridePlacement,
    check_config,
)
from lct_deploy.models.lct import LinearContextTransform
from lct_deploy.models.squeeze_excitation import SqueezeExcitation

Attention = LinearContextTransform | SqueezeExcitation
AttentionFactory = Callable[[int], nn.Module]
Network = TypeVar("Network", bound=nn.Module)


class ResidualBlock(nn.Module):
    """What both kinds of block end in: attention on the branch, the shortcut added, ReLU."""

    attn: nn.Module
    relu: nn.ReLU
    downsample: nn.Module

    def tail(self, branch: Tensor, x: Tensor) -> Tensor:
        return self.relu(self.attn(branch) + self.downsample(x))


class BasicBlock(ResidualBlock):
    """Two 3×3 convolutions; used by ResNet-18, -20 and -34."""

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        stride: int,
        stride_placement: StridePlacement,
        attention: AttentionFactory,
    ) -> None:
        del stride_placement  # a basic block has its stride on the first convolution in both
        super().__init__()
        self.conv1 = _conv(in_channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, 1)
        self.bn2 = nn.BatchNorm2d(width)
        self.attn = attention(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _projection(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        return self.tail(self.bn2(self.conv2(out)), x)


class Bottleneck(ResidualBlock):
    """1×1, 3×3, 1×1 with a fourfold expansion; used by ResNet-26 and deeper."""

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        stride: int,
        stride_placement: StridePlacement,
        attention: AttentionFactory,
    ) -> None:
        super().__init__()
        channels = 4 * width
        first, second = (stride, 1) if stride_placement == "caffe" else (1, stride)
        self.conv1 = _conv(in_channels, width, 1, first)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, second)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, channels, 1, 1)
        self.bn3 = nn.BatchNorm2d(channels)
        self.attn = attention(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _projection(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.tail(self.bn3(self.conv3(out)), x)


class GlobalAveragePool(nn.Module):
    """(N, C, H, W) → (N, C). AdaptiveAvgPool2d(1) traces to index arithmetic on channels_last."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


class Backbone(nn.Module):
    """Stem and stages for `config`: normalised float images (N, 3, H, W) → what each stage gives."""

    def __init__(self, config: BackboneConfig, attention: AttentionFactory) -> None:
        super().__init__()
        family = config.family
        stem = family.widths[0]
        self.config = config
        self.conv1 = _conv(3, stem, 3, 1) if family.small_stem else _conv(3, stem, 7, 2)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if family.small_stem else nn.MaxPool2d(3, 2, 1)
        channels = stem
        for index in range(len(family.blocks)):
            stage = _stage(family, index, channels, config.stride_placement, attention)
            self.add_module(f"layer{index + 1}", stage)
            channels = family.stage_channels[index]

    @property
    def stages(self) -> list[nn.Module]:
        return [module for name, module in self.named_children() if name.startswith("layer")]

    def attention_blocks(self) -> dict[str, Attention]:
        """The attention modules by name, in the order in which an image meets them."""
        return {name: module for name, module in self.named_modules() if isinstance(module, Attention)}

    def stage_outputs(self, x: Tensor) -> list[Tensor]:
        """(N, C, H, W) of every stage, the first at the largest size."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        outputs: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs


class ResNet(Backbone):
    """A ResNet for `config`; input (N, 3, H, W) normalised float, output logits (N, classes)."""

    def __init__(self, config: ModelConfig, attention: AttentionFactory) -> None:
        super().__init__(config, attention)
        self.config = config
        self.avgpool = GlobalAveragePool()
        self.fc = nn.Linear(config.family.stage_channels[-1], config.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.avgpool(self.stage_outputs(x)[-1]))


def build_model(config: ModelConfig, *, w_init: float = 0.0, b_init: float = 1.0) -> ResNet:
    """A freshly initialised network in training mode; He initialisation as in the paper.

    Raises ArchitectureError where the attention's groups do not fit a stage.
    """
    check_config(config)
    return _initialised(ResNet(config, partial(_attention, config.attention, w_init=w_init, b_init=b_init)))


def build_backbone(config: BackboneConfig) -> Backbone:
    """`build_model` without a classifier."""
    check_config(config)
    return _initialised(Backbone(config, partial(_attention, config.attention, w_init=0.0, b_init=1.0)))


def _initialised(network: Network) -> Network:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def _attention(config: AttentionConfig, channels: int, *, w_init: float, b_init: float) -> nn.Module:
    if config.kind == "none":
        return nn.Identity()
    if config.kind == "lct":
        return LinearContextTransform(
            channels,
            config.groups,
            epsilon=config.epsilon,
            normalize=config.normalize,
            transform=config.transform,
            w_init=w_init,
            b_init=b_init,
        )
    return SqueezeExcitation(
        channels,
        reduction=config.reduction,
        epsilon=config.epsilon,
        groups=config.groups if config.kind == "se_plus" else None,
    )


def _stage(
    family: Family,
    index: int,
    in_channels: int,
    stride_placement: StridePlacement,
    attention: AttentionFactory,
) -> nn.Sequential:
    block = Bottleneck if family.block == "bottleneck" else BasicBlock
    blocks: list[nn.Module] = []
    for position in range(family.blocks[index]):
        blocks.append(
            block(
                in_channels,
                family.widths[index],
                stride=2 if position == 0 and index > 0 else 1,
                stride_placement=stride_placement,
                attention=attention,
            )
        )
        in_channels = family.stage_channels[index]
    return nn.Sequential(*blocks)


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False)


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """The shortcut: identity, or a strided 1×1 convolution where shapes differ."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(_conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))


def calibrate_batch_norm(model: nn.Module, batches: list[Tensor]) -> None:
    """Set BatchNorm's running statistics to those of `batches` (N, 3, H, W), in place.

    For networks with random weights: without it activations explode or vanish with depth.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
    model.train()
    with torch.no_grad():
        for batch in batches:
            model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
