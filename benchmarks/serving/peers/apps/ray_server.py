"""Ray Serve with `@serve.batch`, its switches for throughput set by whoever starts this."""

# pyright: basic, reportMissingImports=false, reportArgumentType=false, reportReturnType=false
# pyright: reportAttributeAccessIssue=false

import asyncio
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import ray
from classifier import BATCH, BATCH_SECONDS, PORT, REPLICAS, THREADS, Classifier
from ray import serve
from starlette.requests import Request


@serve.deployment(num_replicas=REPLICAS, max_ongoing_requests=256, ray_actor_options={"num_cpus": 0})
class Server:
    def __init__(self) -> None:
        self.classifier = Classifier()
        self.pool = ThreadPoolExecutor(THREADS + 1)  # one of them infers

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=BATCH_SECONDS)
    async def infer(self, images: list) -> list:
        return await asyncio.get_running_loop().run_in_executor(self.pool, self.classifier.infer, images)

    async def __call__(self, request: Request) -> dict:
        body = await request.body()
        loop = asyncio.get_running_loop()
        return await self.infer(await loop.run_in_executor(self.pool, self.classifier.decode, body))


if __name__ == "__main__":
    ray.init(
        include_dashboard=False,
        object_store_memory=100_000_000,
        _node_ip_address="127.0.0.1",
        _temp_dir=os.environ["PEER_HOME"],
    )
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(Server.bind(), route_prefix="/classify")
    signal.sigwait([signal.SIGTERM])
