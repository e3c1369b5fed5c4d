"""The 512 labelled images that ship with the package: the first of Fashion-MNIST's test split.

Copyright 2017 Zalando SE, MIT licence (assets/LICENSE.fashion-mnist).
"""

from pathlib import Path

import numpy as np

from lct_deploy.datasets import FASHION_MNIST_LABELS, ArrayImages

ASSETS = Path(__file__).parent / "assets"
DEMO_CHECKPOINT = ASSETS / "lct_resnet20_fashion_mnist.safetensors"
SAMPLE = ASSETS / "fashion_mnist_sample.npz"


def load_sample() -> ArrayImages:
    """512 greyscale images of 28x28 pixels and their classes."""
    with np.load(SAMPLE, allow_pickle=False) as arrays:
        images, labels = arrays["images"], arrays["labels"].astype(np.int64)
    return ArrayImages(images=images, labels=labels, classes=FASHION_MNIST_LABELS)
