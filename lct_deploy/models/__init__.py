"""The paper in PyTorch: LCT, SE and SE+ attention in ResNets."""

from lct_deploy.models.lct import LinearContextTransform
from lct_deploy.models.resnet import Attention, Backbone, ResNet, build_backbone, build_model
from lct_deploy.models.squeeze_excitation import SqueezeExcitation

__all__ = [
    "Attention",
    "Backbone",
    "LinearContextTransform",
    "ResNet",
    "SqueezeExcitation",
    "build_backbone",
    "build_model",
]
