"""Networks to time, which nobody trained."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lct_deploy.architecture import model_config
from lct_deploy.models import ResNet, build_model
from lct_deploy.models.classifier import ImageClassifier
from lct_deploy.models.resnet import ResidualBlock, calibrate_batch_norm
from lct_deploy.preprocessing import Preprocessing

_BATCH = 16  # images
_OTHER_LOGIT = -15.0  # of classes that no image is of, where those of the others are about ±10


def random_network(arch: str, *, size: int = 224) -> ResNet:
    """Calibrated BatchNorm, gates that vary; the same weights every time, in evaluation mode."""
    torch.manual_seed(0)
    network = build_model(model_config(arch))
    for name, parameter in network.named_parameters():
        if name.endswith(("attn.w", "attn.b")):
            torch.nn.init.normal_(parameter)
    calibrate_batch_norm(network, [torch.randn(8, 3, size, size)])
    return network.requires_grad_(False)


def photograph_network(
    arch: str, images: NDArray[np.uint8], labels: NDArray[np.intp], preprocessing: Preprocessing
) -> ResNet:
    """Weights that nobody trained and that still tell the photographs `images` (N, H, W, 3) are parts of.

    Eight bits change the answer of random weights, whose logits hardly depend on the image. So, as in
    trained networks, residual branches are weaker than shortcuts, the more so the more there are; the means
    of their channels differ (LCT divides by how much they do), and gates stay near their middle; the
    convolutions are random. The head scores by the nearest mean of a label's features.
    """
    torch.manual_seed(0)
    network = build_model(model_config(arch))
    for name, parameter in network.named_parameters():
        if name.endswith(("attn.w", "attn.b")):
            nn.init.normal_(parameter, std=0.25)
    blocks = [module for module in network.modules() if isinstance(module, ResidualBlock)]
    for block in blocks:
        last = [child for child in block.children() if isinstance(child, nn.BatchNorm2d)][-1]
        nn.init.constant_(last.weight, len(blocks) ** -0.5)
        nn.init.normal_(last.bias, std=2 * len(blocks) ** -0.5)
    pixels = ImageClassifier(network, preprocessing).normalized(torch.from_numpy(images))
    calibrate_batch_norm(network, [pixels[:_BATCH]])
    network.requires_grad_(False)
    _classify_by_nearest_mean(network, pixels, torch.from_numpy(labels))
    return network


def _classify_by_nearest_mean(network: ResNet, pixels: Tensor, labels: Tensor) -> None:
    with torch.no_grad():
        maps = [network.stage_outputs(batch)[-1] for batch in pixels.split(_BATCH)]
    features = torch.cat([network.avgpool(one) for one in maps])
    centre = features.mean(0)
    means = torch.stack([features[labels == label].mean(0) for label in labels.unique()]) - centre
    scale = 10 / means.square().sum(1).mean()
    network.fc.weight.zero_()
    network.fc.weight[: len(means)] = scale * means
    network.fc.bias.fill_(_OTHER_LOGIT)
    network.fc.bias[: len(means)] = -scale * (means @ centre + means.square().sum(1) / 2)
