"""What all peers share: a bundle's graph on plain onnxruntime, its preprocessing, the top five as JSON.

Runs in a peer's own environment, where nothing of this project is installed.
"""

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

PORT = int(os.environ["PEER_PORT"])
REPLICAS = int(os.environ["PEER_REPLICAS"])
THREADS = int(os.environ["PEER_THREADS"])  # of one replica: to infer, and to decode
BATCH = int(os.environ["PEER_BATCH"])
BATCH_SECONDS = 0.005  # how long a batch waits to be filled, where that is a setting

Image8 = np.ndarray[Any, np.dtype[np.uint8]]


class Classifier:
    """`PEER_SPEC` names a JSON file: graph, labels, resize, crop, interpolation."""

    def __init__(self) -> None:
        self.spec = json.loads(Path(os.environ["PEER_SPEC"]).read_text())
        self.filter = Image.Resampling[self.spec["interpolation"].upper()]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        options.log_severity_level = 3
        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(self.spec["graph"], options, providers=providers)
        self.infer([np.zeros((self.spec["crop"], self.spec["crop"], 3), np.uint8)])

    def decode(self, data: bytes) -> Image8:
        return self.preprocess(Image.open(io.BytesIO(data)))

    def preprocess(self, image: Image.Image) -> Image8:
        """RGB, short side resized, centre cropped: torchvision's evaluation."""
        image = image.convert("RGB")
        crop, resize, (width, height) = self.spec["crop"], self.spec["resize"], image.size
        long = int(resize * max(width, height) / min(width, height))
        width, height = (resize, long) if width <= height else (long, resize)
        left, top = int(round((width - crop) / 2.0)), int(round((height - crop) / 2.0))
        resized = image.resize((width, height), self.filter)
        return np.asarray(resized.crop((left, top, left + crop, top + crop)))

    def infer(self, images: list[Image8]) -> list[dict[str, Any]]:
        """An answer for each image."""
        logits = np.asarray(self.session.run(["logits"], {"image": np.stack(images)})[0])
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        return [{"predictions": [self._top(row)]} for row in exponents / exponents.sum(axis=1, keepdims=True)]

    def _top(self, probabilities: Any) -> list[dict[str, Any]]:
        labels = self.spec["labels"]
        return [
            {"index": int(i), "label": labels[i], "probability": float(probabilities[i])}
            for i in np.argsort(-probabilities, kind="stable")[:5]
        ]
