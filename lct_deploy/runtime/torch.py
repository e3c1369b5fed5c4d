"""PyTorch: the reference that every other runtime is compared with. Opens checkpoints."""

from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from lct_deploy.checkpoint import load_checkpoint
from lct_deploy.manifest import Artifact
from lct_deploy.models.classifier import ImageClassifier
from lct_deploy.preprocessing import Preprocessing, evaluation_preprocessing
from lct_deploy.runtime.base import RuntimeOptions, RuntimeSpec, Stages, check_images, milliseconds_of


class TorchRuntime:
    """An eager float32 network on the CPU, in evaluation mode."""

    def __init__(self, classifier: ImageClassifier, preprocessing: Preprocessing) -> None:
        self._classifier = classifier.eval()
        self._spec = RuntimeSpec(
            runtime="torch",
            precision="fp32",
            height=preprocessing.crop,
            width=preprocessing.crop,
            num_classes=classifier.network.config.num_classes,
            device="cpu",
            versions={"torch": torch.__version__},
        )

    @classmethod
    def open(cls, path: Path, options: RuntimeOptions, artifact: Artifact | None = None) -> Self:
        torch.set_num_threads(options.threads)
        loaded = load_checkpoint(path)
        size = loaded.config.family.image_size
        own = loaded.metadata.preprocessing if loaded.metadata else evaluation_preprocessing(size)
        return cls(ImageClassifier(loaded.model, own), own)

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
