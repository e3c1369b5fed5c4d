"""BentoML with adaptive batching: a service whose one method takes a list of images."""

# pyright: basic, reportMissingImports=false

from concurrent.futures import ThreadPoolExecutor

import bentoml
from classifier import BATCH, REPLICAS, THREADS, Classifier
from PIL.Image import Image


@bentoml.service(workers=REPLICAS, traffic={"timeout": 60}, logging={"access": {"enabled": False}})
class Server:
    def __init__(self) -> None:
        self.classifier = Classifier()
        self.pool = ThreadPoolExecutor(THREADS)

    @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=30_000)
    def classify(self, images: list[Image]) -> list[dict]:
        return self.classifier.infer(list(self.pool.map(self.classifier.preprocess, images)))
