"""PyTorch's answers: logits in float32, and every block's gate recomputed in float64."""

import copy
from collections.abc import Callable, Generator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from exporters.images import ParityImages
from exporters.proof import GATE_IMAGES, Proof, Reference
from lct_deploy.models import Attention, Backbone, ResNet
from lct_deploy.models.classifier import ImageClassifier
from lct_deploy.models.lct import global_context
from lct_deploy.preprocessing import Preprocessing
from lct_deploy.progress import track

BATCH = 16

Recorded = dict[str, list[Tensor]]  # by layer, a tensor (N, C) for each forward pass


def compute_reference(
    network: ResNet, preprocessing: Preprocessing, images: NDArray[np.uint8], *, gate_images: int
) -> Reference:
    """Run the float32 network; gates come from its own activations, in float64."""
    classifier = ImageClassifier(network, preprocessing).eval()
    starts = range(0, len(images), BATCH)
    with torch.inference_mode():
        logits = [
            classifier(torch.tensor(images[start : start + BATCH]))
            for start in track(starts, "PyTorch", total=len(starts))
        ]
        contexts, gates = _attention(classifier, images[:gate_images])
    return Reference(logits=torch.cat(logits).numpy(), gates=gates, contexts=contexts)


def _attention(
    classifier: ImageClassifier, images: NDArray[np.uint8]
) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
    """Contexts and gates by layer, (N, C)."""
    with recorded_attention(classifier.network) as recorded:
        for start in range(0, len(images), BATCH):
            classifier(torch.tensor(images[start : start + BATCH]))
    contexts, gates = (
        {name: torch.cat(values).numpy() for name, values in kept.items()} for kept in recorded
    )
    return contexts, gates


@contextmanager
def recorded_attention(network: Backbone) -> Generator[tuple[Recorded, Recorded]]:
    """Contexts and gates of every block until the end, in float64 from the block's own input."""
    contexts: Recorded = {}
    gates: Recorded = {}
    handles = [
        module.register_forward_pre_hook(
            _recorder(
                copy.deepcopy(module).double(), contexts.setdefault(name, []), gates.setdefault(name, [])
            )
        )
        for name, module in network.attention_blocks().items()
    ]
    try:
        yield contexts, gates
    finally:
        for handle in handles:
            handle.remove()


def _recorder(attention: Attention, contexts: list[Tensor], gates: list[Tensor]) -> Callable[..., None]:
    def record(module: nn.Module, inputs: tuple[Tensor]) -> None:
        x = inputs[0].double()
        contexts.append(global_context(x))
        gates.append(attention.gate(x))

    return record


def prove(network: ResNet, preprocessing: Preprocessing, images: ParityImages) -> Proof:
    """PyTorch's side of a comparison on these images."""
    reference = compute_reference(network, preprocessing, images.images, gate_images=GATE_IMAGES)
    return Proof(images=images, reference=reference, versions={"torch": torch.__version__})
