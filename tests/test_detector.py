"""The maps of a bundle in torchvision's detector: its pyramid and heads give what they give with its own."""

from collections import OrderedDict
from collections.abc import Generator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from exporters.backbone.export import export_backbone
from exporters.backbone.options import BackboneOptions
from lct_deploy.architecture import FEATURES
from lct_deploy.bundle import BackboneBundle, open_any_bundle
from lct_deploy.models import LinearContextTransform
from lct_deploy.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from lct_deploy.runtime import RuntimeOptions
from lct_deploy.runtime.backbone import BackboneRuntime
from lct_deploy.runtime.select import open_backbone

detection = pytest.importorskip("torchvision.models.detection", reason="needs torchvision")
resnet = pytest.importorskip("torchvision.models.resnet", reason="needs torchvision")
FrozenBatchNorm2d: Any = pytest.importorskip("torchvision.ops", reason="needs torchvision").FrozenBatchNorm2d

GROUPS = 16


class LctBlock(resnet.BasicBlock):
    """torchvision's block with the paper's attention behind its last BatchNorm."""

    def __init__(self, inplanes: int, planes: int, *arguments: Any, **options: Any) -> None:
        super().__init__(inplanes, planes, *arguments, **options)
        self.lct = LinearContextTransform(planes, GROUPS, epsilon=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.lct(self.bn2(self.conv2(out)))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


@pytest.fixture(scope="module")
def detector() -> Any:
    """A Faster R-CNN on a pyramid over an LCT-ResNet-18, with random weights and frozen statistics."""
    torch.manual_seed(0)
    body = resnet.ResNet(LctBlock, [2, 2, 2, 2], norm_layer=FrozenBatchNorm2d)
    for module in body.modules():
        if isinstance(module, LinearContextTransform):
            nn.init.normal_(module.w)
            nn.init.normal_(module.b)
        elif isinstance(module, FrozenBatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(1.0, 3.0)
    layers = {f"layer{i + 1}": str(i) for i in range(4)}
    backbone = detection.backbone_utils.BackboneWithFPN(body, layers, [64, 128, 256, 512], 256)
    return detection.FasterRCNN(
        backbone, num_classes=5, min_size=64, max_size=128, box_detections_per_img=10
    ).eval()


@pytest.fixture(scope="module")
def runtime(detector: Any, tmp_path_factory: pytest.TempPathFactory) -> Generator[BackboneRuntime]:
    directory = tmp_path_factory.mktemp("detector")
    torch.save(detector.state_dict(), directory / "faster_rcnn.pth")
    options = BackboneOptions(features=FEATURES, resize=32)
    heard: list[str] = []
    export_backbone(
        directory / "faster_rcnn.pth", directory / "bundle", options, command="", announce=heard.append
    )
    assert "left out, in tensors: backbone.fpn 16, roi_heads 8, rpn 6" in heard[0]
    bundle = open_any_bundle(directory / "bundle")
    assert isinstance(bundle, BackboneBundle)
    with closing(open_backbone(bundle, "onnxruntime", RuntimeOptions(threads=1))) as opened:
        yield opened


def photo(height: int, width: int) -> NDArray[np.uint8]:
    """Smooth enough that the detector's proposals differ."""
    coarse = np.random.default_rng(1).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]


def as_tensor(image: NDArray[np.uint8]) -> Tensor:
    return torch.tensor(image.transpose(2, 0, 1) / np.float32(255))


def maps_of(runtime: BackboneRuntime, image: NDArray[np.uint8]) -> "OrderedDict[str, Tensor]":
    """The four maps under the keys that torchvision's own body gives them."""
    maps = runtime.infer(image[None])
    return OrderedDict((str(i), torch.tensor(maps[name])) for i, name in enumerate(FEATURES))


@pytest.mark.parametrize(("height", "width"), [(75, 101), (33, 250), (64, 64)])
def test_the_pyramid_over_the_bundles_maps_is_that_over_torchvisions(
    detector: Any, runtime: BackboneRuntime, height: int, width: int
) -> None:
    image = photo(height, width)
    mean, std = (torch.tensor(x)[:, None, None] for x in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.inference_mode():
        expected = detector.backbone(((as_tensor(image) - mean) / std)[None])
        pyramid = detector.backbone.fpn(maps_of(runtime, image))
    assert list(pyramid) == list(expected) == ["0", "1", "2", "3", "pool"]
    for level, values in pyramid.items():
        torch.testing.assert_close(
            values, expected[level], rtol=0, atol=1e-4 * float(expected[level].abs().max())
        )


def test_the_detections_from_the_bundles_maps_are_the_detectors(
    detector: Any, runtime: BackboneRuntime
) -> None:
    image = photo(64, 96)  # neither resized nor padded by the detector
    with torch.inference_mode():
        (expected,) = detector([as_tensor(image)])
        pyramid = detector.backbone.fpn(maps_of(runtime, image))
        images = detection.image_list.ImageList(torch.zeros(1, 3, 64, 96), [(64, 96)])
        proposals, _ = detector.rpn(images, pyramid)
        (found,), _ = detector.roi_heads(pyramid, proposals, images.image_sizes)
    assert len(expected["boxes"]) == 10
    assert torch.equal(found["labels"], expected["labels"])
    torch.testing.assert_close(found["boxes"], expected["boxes"], rtol=0, atol=0.05)
    torch.testing.assert_close(found["scores"], expected["scores"], rtol=0, atol=1e-4)
