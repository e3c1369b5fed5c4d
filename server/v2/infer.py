"""POST …/infer: tensors or images in, logits or classes out."""

import time
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
from fastapi import Request, Response
from numpy.typing import NDArray

from server.bodies import read_body
from server.v2.backend import Model, Models
from server.v2.codings import accepted_coding, compressed, decompressed
from server.v2.images import decode_images
from server.v2.limits import Limits
from server.v2.request import HEADER, Encoded, InferRequest, Takes, read_request
from server.v2.response import Answer, write_answer


@dataclass(frozen=True, kw_only=True)
class Inferences:
    """Answers inference requests; raises Problems."""

    models: Models
    decoders: Executor
    limits: Limits

    async def answer(self, request: Request, model: str, version: str | None = None) -> Response:
        """What the route does: everything from the body to the body of the answer."""
        arrived = time.monotonic()
        self.models.find(model, version)  # before anything is read for one that is not there
        body = await self._body(request)
        served = self.models.find(model, version)  # it may have been replaced; from here on it is held
        asked = read_request(body, request.headers.get(HEADER), self._takes(served))
        seconds = self.limits.request_seconds
        deadline = arrived + (seconds if asked.timeout is None else min(seconds, asked.timeout))
        logits = await self._infer(served, asked, deadline)
        answer = write_answer(asked, served.name, served.version, logits, served.manifest.labels)
        return await self._respond(answer, request.headers.get("accept-encoding"))

    async def _body(self, request: Request) -> bytes:
        limits = self.limits
        body = await read_body(request, limits.max_body_bytes, seconds=limits.body_seconds)
        coding = request.headers.get("content-encoding")
        if coding is None:
            return body
        return await decompressed(body, coding, limits.max_body_bytes, self.decoders)

    def _takes(self, served: Model) -> Takes:
        spec = served.spec
        return Takes(
            input=served.manifest.input.name,
            height=spec.height,
            width=spec.width,
            max_rows=self.limits.max_rows,
        )

    async def _infer(self, served: Model, asked: InferRequest, deadline: float) -> NDArray[np.float32]:
        images = asked.images
        with served.reserve(len(images)) as reservation:
            if isinstance(images, Encoded):
                preprocessing = served.manifest.input.preprocessing
                decoded = await decode_images(images, preprocessing, self.decoders, deadline)
            else:
                decoded = list(images)
            return (await reservation.infer(decoded, deadline)).logits

    async def _respond(self, answer: Answer, accept_encoding: str | None) -> Response:
        body, media_type, headers = answer.body, "application/json", dict[str, str]()
        if answer.json_size is not None:
            media_type, headers[HEADER] = "application/octet-stream", str(answer.json_size)
        coding = None if accept_encoding is None else accepted_coding(accept_encoding)
        if coding is not None:
            body, headers["Content-Encoding"] = await compressed(body, coding, self.decoders), coding
        return Response(body, headers=headers, media_type=media_type)
