"""A network with its normalisation inside: the function that every artifact has to reproduce."""

import torch
from torch import Tensor, nn

from lct_deploy.models.resnet import ResNet
from lct_deploy.preprocessing import Preprocessing


class ImageClassifier(nn.Module):
    """uint8 images (N, H, W, 3), RGB → logits (N, classes): scaling, mean and std, then `network`."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: ResNet, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network = network
        shape = (1, 3, 1, 1)
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(shape), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        x = image.permute(0, 3, 1, 2).to(self.mean.dtype) / 255.0
        return self.network((x - self.mean) / self.std)
