"""LitServe as its guide to image classification has it: uploads, decoded in `batch` by a thread pool."""

# pyright: basic, reportMissingImports=false

from concurrent.futures import ThreadPoolExecutor

import litserve as ls
from classifier import BATCH, BATCH_SECONDS, PORT, REPLICAS, THREADS, Classifier
from fastapi import Request


class Api(ls.LitAPI):
    def setup(self, device):
        self.classifier = Classifier()
        self.pool = ThreadPoolExecutor(THREADS)

    def decode_request(self, request: Request):
        return request["content"].file.read()

    def batch(self, inputs):
        return list(self.pool.map(self.classifier.decode, inputs))

    def predict(self, x):
        return self.classifier.infer(x)

    def unbatch(self, output):
        return output

    def encode_response(self, output):
        return output


if __name__ == "__main__":
    server = ls.LitServer(
        Api(max_batch_size=BATCH, batch_timeout=BATCH_SECONDS, api_path="/classify"),
        accelerator="cpu",
        workers_per_device=REPLICAS,
    )
    server.run(host="127.0.0.1", port=PORT, generate_client_file=False, log_level="warning")
