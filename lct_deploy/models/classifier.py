"""Networks with their normalisation inside: the functions that every artifact has to reproduce."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lct_deploy.architecture import FEATURES, FeatureName
from lct_deploy.models.resnet import Backbone, ResNet
from lct_deploy.preprocessing import Preprocessing, Rgb


class _ImageNetwork(nn.Module):
    """What both take: uint8 images (N, H, W, 3), RGB, scaled and normalised before the network."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Rgb, std: Rgb) -> None:
        super().__init__()
        shape = (1, 3, 1, 1)
        self.register_buffer("mean", torch.tensor(mean).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(shape), persistent=False)

    def normalized(self, image: Tensor) -> Tensor:
        x = image.permute(0, 3, 1, 2).to(self.mean.dtype) / 255.0
        return (x - self.mean) / self.std


class ImageClassifier(_ImageNetwork):
    """uint8 images (N, H, W, 3), RGB → logits (N, classes): scaling, mean and std, then `network`."""

    def __init__(self, network: ResNet, preprocessing: Preprocessing) -> None:
        super().__init__(preprocessing.mean, preprocessing.std)
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return self.network(self.normalized(image))


class ImageBackbone(_ImageNetwork):
    """The same → the maps `features`, each (N, C, ceil(H / stride), ceil(W / stride)) of any H and W."""

    def __init__(self, network: Backbone, mean: Rgb, std: Rgb, features: Sequence[FeatureName]) -> None:
        super().__init__(mean, std)
        self.network, self.features = network, tuple(features)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        outputs = self.network.stage_outputs(self.normalized(image))
        return tuple(outputs[FEATURES.index(name)] for name in self.features)
