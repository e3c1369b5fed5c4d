"""Contexts and gates of a checkpoint's network, seen by hooks while PyTorch runs it."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lct_deploy.analysis.base import Attention
from lct_deploy.checkpoint import LoadedCheckpoint
from lct_deploy.models import Attention as AttentionModule
from lct_deploy.models.classifier import ImageClassifier
from lct_deploy.models.lct import global_context
from lct_deploy.runtime.base import RuntimeOptions


class NetworkGates:
    """An eager float32 network on the CPU, in evaluation mode."""

    def __init__(self, loaded: LoadedCheckpoint, options: RuntimeOptions) -> None:
        torch.set_num_threads(options.threads)
        self._classifier = ImageClassifier(loaded.model, loaded.preprocessing).eval()
        self._seen: dict[str, Attention] = {}
        blocks = loaded.model.attention_blocks()
        self.channels: Mapping[str, int] = {name: module.channels for name, module in blocks.items()}
        self._handles = [
            module.register_forward_pre_hook(self._recorder(name, module)) for name, module in blocks.items()
        ]

    def read(self, images: NDArray[np.uint8]) -> dict[str, Attention]:
        self._seen.clear()
        with torch.inference_mode():
            self._classifier(torch.tensor(images))
        return dict(self._seen)

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _recorder(self, name: str, attention: AttentionModule) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def record(module: nn.Module, inputs: tuple[Tensor]) -> None:
            x = inputs[0]
            self._seen[name] = Attention(context=global_context(x).numpy(), gate=attention.gate(x).numpy())

        return record
