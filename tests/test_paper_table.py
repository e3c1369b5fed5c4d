"""Tables 1 and 6 of the paper, to every digit they print, and what `lct-deploy models` says."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lct_deploy.architecture import StridePlacement, arch_name, arch_names, model_config
from lct_deploy.cost import DETECTION_SIZE, BackboneRow, backbone_cost, backbone_table, model_cost
from lct_deploy.models import LinearContextTransform, SqueezeExcitation, build_model
from lct_deploy.models.resnet import GlobalAveragePool
from tests.conftest import Cli, QuickCli

# Params and FLOPs (multiply-adds) as printed; all six of each are rounded, none is cut off.
TABLE_1 = {
    "resnet50": ("25.56M", "4.122G"),
    "se_resnet50": ("28.09M", "4.130G"),
    "lct_resnet50": ("25.59M", "4.127G"),
    "resnet101": ("44.55M", "7.849G"),
    "se_resnet101": ("49.33M", "7.863G"),
    "lct_resnet101": ("44.61M", "7.858G"),
}


@pytest.mark.parametrize("arch", TABLE_1)
def test_params_and_flops_are_the_papers(arch: str) -> None:
    cost = model_cost(model_config(arch))
    assert (f"{cost.parameters / 1e6:.2f}M", f"{cost.multiply_adds / 1e9:.3f}G") == TABLE_1[arch]


@pytest.mark.parametrize("depth", [50, 101])
def test_lct_adds_two_parameters_a_channel(depth: int) -> None:
    """Table 1's figures need w and b: the text's count of C parameters a block would be half."""
    plain, lct = model_config(f"resnet{depth}"), model_config(f"lct_resnet{depth}")
    channels = sum(
        blocks * outputs for blocks, outputs in zip(lct.family.blocks, lct.family.stage_channels, strict=True)
    )
    assert model_cost(lct).parameters - model_cost(plain).parameters == 2 * channels


def added(arch: str, height: int, width: int) -> BackboneRow:
    (row,) = [row for row in backbone_table((height, width)) if row.arch == arch]
    return row


def test_what_attention_adds_to_a_detector_is_table_6s() -> None:
    """At 1024x1024; the paper does not say at which size it counted."""
    se, lct = (added(arch, *DETECTION_SIZE) for arch in ("se_resnet101", "lct_resnet101"))
    assert (f"{se.added_parameters / 1e6:+.2f}M", f"{se.added_multiply_adds / 1e9:+.3f}G") == (
        "+4.78M",
        "+0.191G",
    )
    assert lct.added_parameters == 65_024
    assert math.floor(lct.added_parameters / 1e4) / 100 == 0.06  # cut off, not rounded
    assert f"{lct.added_multiply_adds / 1e9:+.3f}G" == "+0.187G"


@pytest.mark.parametrize(("height", "width"), [(800, 1333), (800, 1344), (800, 1280), (1333, 1333)])
def test_the_sizes_of_the_papers_text_do_not_give_table_6(height: int, width: int) -> None:
    """Neither 1333x800, nor what it is padded to, nor the size that mmdetection counts at by default."""
    rows = [added(arch, height, width) for arch in ("se_resnet101", "lct_resnet101")]
    printed = [f"{row.added_multiply_adds / 1e9:.3f}" for row in rows]
    assert printed != ["0.191", "0.187"]
    if (height, width) == (800, 1333):
        assert printed == ["0.196", "0.191"]


@pytest.mark.parametrize("depth", [50, 101, 152])
def test_lct_costs_a_detector_its_pooling_and_se_two_layers_more(depth: int) -> None:
    plain, lct, se = (
        backbone_cost(model_config(arch_name(depth, kind)), (321, 1024)) for kind in ("none", "lct", "se")
    )
    family = model_config(f"resnet{depth}").family
    pooled = sum(
        blocks * channels * -(-321 // stride) * -(-1024 // stride)
        for blocks, channels, stride in zip(family.blocks, family.stage_channels, (4, 8, 16, 32), strict=True)
    )
    layers = sum(
        blocks * 2 * channels * (channels // 16)
        for blocks, channels in zip(family.blocks, family.stage_channels, strict=True)
    )
    assert (lct - plain).multiply_adds == pooled
    assert (se - lct).multiply_adds == layers


def test_the_page_on_backbones_has_these_figures() -> None:
    text = (Path(__file__).parent.parent / "docs" / "backbone.md").read_text()
    for height, width in ((1024, 1024), (800, 1333)):
        for arch in ("se_resnet101", "lct_resnet101"):
            row = added(arch, height, width)
            line = (
                f"| {width}×{height} | `{arch}` | {row.added_parameters:,} | "
                f"{row.added_multiply_adds / 1e9:.3f} G |"
            )
            assert line in text


def test_models_prints_backbones(quick_cli: QuickCli) -> None:
    done = quick_cli("models", "--backbone")
    header, *lines = done.stdout.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines}
    assert header.split() == ["architecture", "image", "parameters", "Δ", "multiply-adds", "Δ"]
    assert list(rows) == [arch for arch in arch_names() if not arch.endswith("20")]
    assert rows["lct_resnet101"] == ["1024x1024", "42.57M", "+0.065M", "164.180G", "+0.187G"]
    assert rows["resnet101"] == ["1024x1024", "42.50M", "+0.000M", "163.994G", "+0.000G"]
    done = quick_cli("models", "--backbone", "--size", "1333x800", "--json")
    (row,) = [row for row in json.loads(done.stdout) if row["arch"] == "lct_resnet101"]
    assert (row["width"], row["height"], row["added_multiply_adds"]) == (1333, 800, 190_873_600)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--size", "1024x1024"), "--size is for --backbone"),
        (("--backbone", "--size", "1024"), "is not a list of sizes"),
        (("--backbone", "--size", "8x8,9x9"), "give one such as 1024x1024"),
    ],
)
def test_models_refuses_other_sizes(quick_cli: QuickCli, flags: tuple[str, ...], message: str) -> None:
    done = quick_cli("models", *flags)
    assert done.returncode == 2
    assert message in done.stderr


def counted(model: nn.Module, image: Tensor) -> int:
    """Multiply-adds of one forward pass, counted layer by layer as it runs."""
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        nonlocal total
        x = inputs[0]
        if isinstance(module, nn.Conv2d):
            total += output.numel() * module.weight[0].numel()
        elif isinstance(module, nn.BatchNorm2d):
            total += 2 * output.numel()
        elif isinstance(module, nn.ReLU | nn.MaxPool2d | GlobalAveragePool | LinearContextTransform):
            total += x.numel()
        elif isinstance(module, SqueezeExcitation):
            total += x.numel() + module.fc1.weight.numel() + module.fc2.weight.numel()
        elif isinstance(module, nn.Linear):
            total += module.weight.numel()

    for module in model.modules():
        module.register_forward_hook(count)
    with torch.inference_mode():
        model.eval()(image)
    return total


@pytest.mark.parametrize(
    ("arch", "placement"),
    [(name, "v1.5") for name in arch_names() if name.endswith(("18", "20", "26"))]
    + [("lct_resnet26", "caffe")],
)
def test_cost_is_what_the_network_does(arch: str, placement: StridePlacement) -> None:
    config = model_config(arch, num_classes=7, stride_placement=placement)
    network = build_model(config)
    cost = model_cost(config, image_size=45)  # odd sizes at several stages
    assert cost.parameters == sum(p.numel() for p in network.parameters())
    assert cost.multiply_adds == counted(network, torch.zeros(1, 3, 45, 45))


def test_cost_of_a_backbone_is_what_its_stages_do_on_an_oblong_image() -> None:
    config = model_config("lct_resnet26")
    network = build_model(config).eval()
    head = network.fc.weight.numel() + 2048 * 2 * 4  # the classifier and the pooling before it
    assert (
        backbone_cost(config, (45, 103)).multiply_adds == counted(network, torch.zeros(1, 3, 45, 103)) - head
    )
    parameters = sum(p.numel() for p in network.parameters()) - sum(
        p.numel() for p in network.fc.parameters()
    )
    assert backbone_cost(config, (45, 103)).parameters == parameters


def test_cost_of_the_papers_network_is_what_it_does() -> None:
    config = model_config("lct_resnet50")
    network = build_model(config)
    assert model_cost(config).multiply_adds == counted(network, torch.zeros(1, 3, 224, 224)) == 4_127_443_456


@pytest.mark.parametrize("arch", [arch_name(depth, "se") for depth in (34, 152)])
def test_parameters_of_the_deep_networks(arch: str) -> None:
    config = model_config(arch)
    with torch.device("meta"):
        network = build_model(config)
    assert model_cost(config).parameters == sum(p.numel() for p in network.parameters())


def test_an_ablation_without_transform_has_no_parameters() -> None:
    config = model_config("lct_resnet20", transform=False)
    assert model_cost(config).parameters == model_cost(model_config("resnet20")).parameters
    assert model_cost(config) == model_cost(model_config("lct_resnet20", transform=False, normalize=False))


def test_models_prints_one_line_an_architecture(cli: Cli) -> None:
    done = cli("models")
    assert done.returncode == 0, done.stderr
    header, *lines = done.stdout.splitlines()
    rows = {line.split()[0]: tuple(line.split()[1:]) for line in lines}
    assert header.split() == ["architecture", "image", "parameters", "multiply-adds"]
    assert list(rows) == arch_names()
    for arch, (params, flops) in TABLE_1.items():
        assert rows[arch] == ("224", params, flops)
    assert rows["lct_resnet20"][0] == "32"


def test_models_as_json_is_one_document(cli: Cli) -> None:
    done = cli("models", "--json")
    assert done.returncode == 0, done.stderr
    rows = {row["arch"]: row for row in json.loads(done.stdout)}
    assert set(rows) == set(arch_names())
    assert rows["lct_resnet50"] == {
        "arch": "lct_resnet50",
        "image_size": 224,
        "parameters": 25_587_240,
        "multiply_adds": 4_127_443_456,
    }
    assert rows["resnet20"]["parameters"] == 272_474  # He et al. 2015, Table 6: 0.27M
