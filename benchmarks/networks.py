"""Networks to time: random weights that behave as trained ones do."""

import torch

from lct_deploy.architecture import model_config
from lct_deploy.models import ResNet, build_model
from lct_deploy.models.resnet import calibrate_batch_norm


def random_network(arch: str, *, size: int = 224) -> ResNet:
    """Calibrated BatchNorm, gates that vary; the same weights every time, in evaluation mode."""
    torch.manual_seed(0)
    network = build_model(model_config(arch))
    for name, parameter in network.named_parameters():
        if name.endswith(("attn.w", "attn.b")):
            torch.nn.init.normal_(parameter)
    calibrate_batch_norm(network, [torch.randn(8, 3, size, size)])
    return network.requires_grad_(False)
