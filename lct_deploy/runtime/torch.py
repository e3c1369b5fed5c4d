"""PyTorch: the reference that every other runtime is compared with. Opens checkpoints."""

from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from lct_deploy.checkpoint import LoadedCheckpoint, load_checkpoint
from lct_deploy.manifest import Artifact
from lct_deploy.models.classifier import ImageClassifier
from lct_deploy.runtime.base import RuntimeOptions, RuntimeSpec, Stages, check_images, milliseconds_of


class TorchRuntime:
    """An eager float32 network on the CPU, in evaluation mode."""

    def __init__(self, loaded: LoadedCheckpoint, options: RuntimeOptions) -> None:
        torch.set_num_threads(options.threads)
        preprocessing = loaded.preprocessing
        self._classifier = ImageClassifier(loaded.model, preprocessing).eval()
        self._spec = RuntimeSpec(
            runtime="torch",
            precision="fp32",
            height=preprocessing.crop,
            width=preprocessing.crop,
            num_classes=loaded.config.num_classes,
            device="cpu",
            versions={"torch": torch.__version__},
        )

    @classmethod
    def open(cls, path: Path, options: RuntimeOptions, artifact: Artifact | None = None) -> Self:
        return cls(load_checkpoint(path), options)

    @property
    def spec(self) -> RuntimeSpec:
        return self._spec

    def infer(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        check_images(images, self._spec)
        with torch.inference_mode():
            return self._classifier(torch.tensor(images)).numpy()

    def profile(self, images: NDArray[np.uint8]) -> Stages:
        return Stages(compute=milliseconds_of(lambda: self.infer(images)))

    def close(self) -> None:
        del self._classifier
