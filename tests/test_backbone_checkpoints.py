"""Backbones out of checkpoints as detectors and classifiers save them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lct_deploy.architecture import model_config
from lct_deploy.checkpoint import LoadedBackbone, LoadOptions, load_backbone, load_checkpoint
from lct_deploy.errors import CheckpointError
from lct_deploy.models import ResNet
from tests.conftest import random_network

State = dict[str, Tensor]

IMAGES = torch.randn(2, 3, 37, 50, generator=torch.Generator().manual_seed(2))
HEADS_OF_MMDETECTION = (
    "neck.lateral_convs.0.conv.weight",
    "neck.fpn_convs.0.conv.weight",
    "rpn_head.rpn_conv.weight",
    "roi_head.bbox_head.fc_cls.weight",
    "roi_head.mask_head.conv_logits.bias",
)
HEADS_OF_TORCHVISION = (
    "backbone.fpn.inner_blocks.0.0.weight",
    "backbone.fpn.layer_blocks.0.0.weight",
    "rpn.head.cls_logits.weight",
    "roi_heads.box_predictor.cls_score.weight",
)


@pytest.fixture(scope="module")
def network() -> ResNet:
    return random_network(model_config("lct_resnet18", num_classes=4))


def body(network: ResNet, prefix: str, attention: str = "attn") -> State:
    state = network.state_dict()
    return {
        prefix + key.replace(".attn.", f".{attention}."): value
        for key, value in state.items()
        if not key.startswith("fc.")
    }


def frozen(state: State) -> State:
    """As FrozenBatchNorm2d saves it."""
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def heads(names: tuple[str, ...]) -> State:
    return dict.fromkeys(names, torch.zeros(2))


def loads(network: ResNet, content: Any, directory: Path) -> LoadedBackbone:
    torch.save(content, directory / "detector.pth")
    loaded = load_backbone(directory / "detector.pth")
    for ours, theirs in zip(loaded.model.stage_outputs(IMAGES), network.stage_outputs(IMAGES), strict=True):
        assert torch.equal(ours, theirs)
    assert not loaded.model.training
    return loaded


def test_a_detector_of_mmdetection(network: ResNet, tmp_path: Path) -> None:
    state = body(network, "backbone.", "lct") | heads(HEADS_OF_MMDETECTION)
    notes = loads(network, {"meta": {"epoch": 12}, "state_dict": state, "optimizer": {}}, tmp_path).notes
    assert notes[0] == "the backbone is backbone; left out, in tensors: neck 2, roi_head 2, rpn_head 1"


def test_a_detector_of_torchvision(network: ResNet, tmp_path: Path) -> None:
    state = frozen(body(network, "backbone.body.")) | heads(HEADS_OF_TORCHVISION)
    notes = loads(network, state, tmp_path).notes
    assert notes[0] == (
        "the backbone is backbone.body; left out, in tensors: backbone.fpn 2, roi_heads 1, rpn 1"
    )
    assert notes[1] == "BatchNorms count no steps, as frozen ones do; their ε is assumed to be 1e-05"


@pytest.mark.parametrize("prefix", ["", "body.", "module.backbone.", "model.backbone.body.", "_orig_mod."])
def test_other_prefixes(network: ResNet, tmp_path: Path, prefix: str) -> None:
    loads(network, body(network, prefix), tmp_path)


def test_weights_around_a_wrapped_detector_are_named_with_it(network: ResNet, tmp_path: Path) -> None:
    state = body(network, "module.backbone.body.") | heads(("module.rpn.w", "module.backbone.fpn.w", "steps"))
    assert "module.backbone.fpn 1, module.rpn 1, steps 1" in loads(network, state, tmp_path).notes[0]


def test_a_classifier_loses_its_classifier_aloud(network: ResNet, tmp_path: Path) -> None:
    notes = loads(network, {"ema": network.state_dict()}, tmp_path).notes
    assert notes[0] == "the classifier is left out: fc.weight, fc.bias"


def test_a_backbone_with_its_classifier_beside_it(network: ResNet, tmp_path: Path) -> None:
    state = body(network, "backbone.") | {"fc.weight": torch.zeros(3, 512), "fc.bias": torch.zeros(3)}
    assert "left out, in tensors: fc 2" in loads(network, state, tmp_path).notes[0]


def without(key: str) -> Callable[[State], State]:
    return lambda state: {name: value for name, value in state.items() if name != key}


MISFITS: dict[str, tuple[Callable[[State], State], str]] = {
    "missing": (without("backbone.layer2.0.bn1.weight"), r"missing +layer2\.0\.bn1\.weight"),
    "unexpected": (
        lambda s: s | {"backbone.layer1.0.gc.w": torch.zeros(1)},
        r"unexpected +backbone\.layer1\.0\.gc\.w",
    ),
    "twice": (
        lambda s: s | {"backbone.layer1.0.lct.weight": torch.zeros(64)},
        r"backbone\.layer1\.0\.attn\.w and backbone\.layer1\.0\.lct\.weight both mean layer1\.0\.attn\.w",
    ),
    "shape": (lambda s: s | {"backbone.bn1.weight": torch.zeros(3)}, r"shape +backbone\.bn1\.weight: \(3,\)"),
    "nan": (
        lambda s: s | {"backbone.bn1.bias": torch.full((64,), torch.nan)},
        r"NaN or infinity in backbone\.bn1\.bias",
    ),
    "several": (
        lambda s: s | {"teacher.layer1.0.conv1.weight": torch.zeros(1)},
        r"holds 2 backbones: backbone\., teacher\.",
    ),
    "none": (lambda s: {"neck.w": torch.zeros(1)}, r"no backbone found[\s\S]*neck\.w"),
}


@pytest.mark.parametrize(("change", "message"), MISFITS.values(), ids=MISFITS)
def test_what_does_not_fit_is_named_as_the_file_names_it(
    network: ResNet, tmp_path: Path, change: Callable[[State], State], message: str
) -> None:
    torch.save(change(body(network, "backbone.")), tmp_path / "detector.pth")
    with pytest.raises(CheckpointError, match=message):
        load_backbone(tmp_path / "detector.pth")


def test_flags_are_held_to_the_weights(network: ResNet, tmp_path: Path) -> None:
    torch.save(body(network, "backbone."), tmp_path / "detector.pth")
    loaded = load_backbone(tmp_path / "detector.pth", LoadOptions(groups=8, epsilon=1e-3))
    assert (loaded.config.attention.groups, loaded.config.attention.epsilon) == (8, 1e-3)
    with pytest.raises(CheckpointError, match="--arch lct_resnet34 contradicts the weights"):
        load_backbone(tmp_path / "detector.pth", LoadOptions(arch="lct_resnet34"))


def test_a_detector_is_no_classifier_and_the_way_out_is_told(network: ResNet, tmp_path: Path) -> None:
    torch.save(body(network, "backbone."), tmp_path / "detector.pth")
    with pytest.raises(CheckpointError, match=r"no classifier found[\s\S]*--features c2,c3,c4,c5"):
        load_checkpoint(tmp_path / "detector.pth")
