"""What the sections share: weights, PyTorch's float32 logits, the portable graphs."""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from PIL import Image
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from benchmarks.gpu.plan import Attention
from benchmarks.networks import random_network
from exporters.graph import export_graph
from exporters.images import parity_images
from exporters.options import CalibrationOptions, ExportOptions, Target
from exporters.variants import make_variant
from lct_deploy.architecture import model_config
from lct_deploy.manifest import Precision
from lct_deploy.models import ResNet, build_model
from lct_deploy.models.classifier import ImageClassifier
from lct_deploy.parity import in_batches
from lct_deploy.preprocessing import evaluation_preprocessing

SIZE = 224
PREPROCESSING = evaluation_preprocessing(SIZE)
IMAGES = 32  # that parity is measured on
CALIBRATION = 64


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Images (N, 224, 224, 3) uint8, and PyTorch's float32 logits for them."""

    images: NDArray[np.uint8]
    logits: NDArray[np.float32]


def architecture(attention: Attention) -> str:
    return "resnet50" if attention == "none" else "lct_resnet50"


def prepare(work: Path) -> None:
    """Leave in `work` what the functions below read; takes a minute on a CPU."""
    images = parity_images(PREPROCESSING, None, ()).images
    for arch in ("resnet50", "lct_resnet50"):
        network = random_network(arch)
        torch.save(network.state_dict(), work / f"{arch}.pt")
        classifier = ImageClassifier(network, PREPROCESSING).eval()
        with torch.inference_mode():
            (logits,) = in_batches(lambda x: [classifier(torch.tensor(x)).numpy()], images[:IMAGES], 8)  # noqa: B023
        np.savez(work / f"{arch}.npz", images=images[:IMAGES], logits=logits)
        graph = export_graph(network, PREPROCESSING, metadata={})
        onnx.save(graph.model, work / f"{arch}.onnx")
    directory = work / "calibration"
    directory.mkdir()
    for index, image in enumerate(images[IMAGES : IMAGES + CALIBRATION]):
        Image.fromarray(image[:, ::-1]).save(directory / f"{index:03}.png")


def load_network(work: Path, attention: Attention) -> ResNet:
    """With BatchNorm folded, as the graphs have it that the other runtimes take."""
    network = build_model(model_config(architecture(attention)))
    network.load_state_dict(torch.load(work / f"{architecture(attention)}.pt", weights_only=True))
    return fold_batch_norm(network.eval()).requires_grad_(False)


def fold_batch_norm(network: ResNet) -> ResNet:
    """Every BatchNorm in the convolution before it; the same network, in evaluation mode.

    A compiler fuses a BatchNorm with what follows it, but not with a kernel of ours: left alone it would
    cost the network with the fused attention a pass over every tensor that the plain one is spared.
    """
    for parent in list(network.modules()):
        for (name, convolution), (norm_name, norm) in itertools.pairwise(list(parent.named_children())):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(convolution, norm))
                setattr(parent, norm_name, nn.Identity())
    return network


def load_reference(work: Path, attention: Attention) -> Reference:
    with np.load(work / f"{architecture(attention)}.npz", allow_pickle=False) as arrays:
        return Reference(images=arrays["images"], logits=arrays["logits"])


def make_graph(work: Path, attention: Attention, precision: Precision, target: Target) -> ModelProto:
    """The network's graph in a precision, as `lct-deploy export --for TARGET` makes it; made once."""
    path = work / f"{architecture(attention)}-{precision}-{target}.onnx"
    if path.is_file():
        return onnx.load(path)
    calibrated = precision in ("int8", "fp8")
    calibration = CalibrationOptions(data=str(work / "calibration"), images=CALIBRATION)
    options = ExportOptions(
        precision="fp32" if precision == "tf32" else precision,
        target=target,
        calibration=calibration if calibrated else CalibrationOptions(),
    )
    parity = parity_images(PREPROCESSING, None, ())
    portable = onnx.load(work / f"{architecture(attention)}.onnx")
    model = make_variant(portable, options, PREPROCESSING, parity).model
    onnx.save(model, path)
    return model
