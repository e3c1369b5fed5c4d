"""Networks to time: random weights that behave as trained ones do."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lct_deploy.architecture import model_config
from lct_deploy.models import ResNet, build_model
from lct_deploy.models.resnet import calibrate_batch_norm
from lct_deploy.preprocessing import Preprocessing

RIDGE = 0.1  # of the mean squared length of the features
LOGIT = 10.0  # of an image's own class
OTHERS = 0.1  # what is left of the random logits of all other classes


def random_network(arch: str, *, size: int = 224) -> ResNet:
    """Calibrated BatchNorm, gates that vary; the same weights every time, in evaluation mode."""
    torch.manual_seed(0)
    network = build_model(model_config(arch))
    for name, parameter in network.named_parameters():
        if name.endswith(("attn.w", "attn.b")):
            torch.nn.init.normal_(parameter)
    calibrate_batch_norm(network, [torch.randn(8, 3, size, size)])
    return network.requires_grad_(False)


def learn_classes(
    network: ResNet, preprocessing: Preprocessing, images: NDArray[np.uint8], labels: NDArray[np.int64]
) -> None:
    """Give the classifier weights that tell images (N, H, W, 3) of `labels` apart: ridge regression.

    Of random logits of a thousand classes the two best are so near each other that eight bits often change
    their order, which a proof of parity refuses with reason.
    """
    features = _features(network, preprocessing, images)
    mean = features.mean(dim=0)
    centred, classes = features - mean, int(labels.max()) + 1
    wanted = LOGIT * torch.eye(classes)[torch.from_numpy(labels)]
    gram = centred @ centred.T
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
    weights = centred.T @ torch.linalg.solve(gram + ridge, wanted - wanted.mean(dim=0))
    network.fc.weight.mul_(OTHERS)
    network.fc.bias.mul_(OTHERS)
    network.fc.weight[:classes] = weights.T
    network.fc.bias[:classes] = wanted.mean(dim=0) - mean @ weights


def _features(network: ResNet, preprocessing: Preprocessing, images: NDArray[np.uint8]) -> Tensor:
    """What the classifier reads of each image: (N, C)."""
    found: list[Tensor] = []
    hook = network.fc.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    for image in images:
        network((torch.from_numpy(image).permute(2, 0, 1).float() / 255 - mean)[None] / std)
    hook.remove()
    return torch.cat(found)
