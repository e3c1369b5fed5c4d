"""POST …/infer: tensors or images in, logits or classes out."""

import time
from dataclasses import dataclass

import numpy as np
from fastapi import Request, Response
from numpy.typing import NDArray

from lct_deploy.errors import ImageError, ImageTooLargeError
from server.lifetimes import while_connected
from server.problems import Problem, image_failure
from server.served import ServedModel
from server.service import Service
from server.v2.codings import accepted_coding, compressed, decompressed
from server.v2.request import HEADER, Encoded, InferRequest, Takes, read_request
from server.v2.response import Answer, write_answer


@dataclass(frozen=True)
class Inferences:
    """Answers inference requests; raises Problems."""

    service: Service

    async def answer(self, request: Request, model: str, version: str | None = None) -> Response:
        """What the route does: everything from the body to the body of the answer."""
        arrived = time.monotonic()
        self.service.keys.check(request, "infer")
        with self.service.models.find(model, version) as served:
            async with self.service.bodies.read(request) as sent:
                body = await self._decoded(request, sent)
                asked = read_request(body, request.headers.get(HEADER), self._takes(served))
                seconds = self.service.settings.request_seconds
                deadline = arrived + (seconds if asked.timeout is None else min(seconds, asked.timeout))
                logits = await while_connected(request, self._infer(served, asked, deadline))
            answer = write_answer(asked, served.name, served.version, logits, served.manifest.labels)
        return await self._respond(answer, request.headers.get("accept-encoding"))

    async def _decoded(self, request: Request, body: bytes) -> bytes:
        coding = request.headers.get("content-encoding")
        if coding is None:
            return body
        return await decompressed(
            body, coding, self.service.settings.max_body_bytes, self.service.decoders.threads
        )

    def _takes(self, served: ServedModel) -> Takes:
        spec = served.spec
        return Takes(
            input=served.manifest.input.name,
            height=spec.height,
            width=spec.width,
            max_rows=self.service.settings.max_images,
            max_json_values=self.service.settings.max_json_values,
        )

    async def _infer(self, served: ServedModel, asked: InferRequest, deadline: float) -> NDArray[np.float32]:
        images = asked.images
        with served.reserve(len(images)) as reservation:
            if isinstance(images, Encoded):
                files = [bytes(file) for file in images.files]
                decoded = await self.service.decoders.decode(files, served.preprocessing, deadline)
                ready = [_good(index, image) for index, image in enumerate(decoded)]
            else:
                ready = list(images)
            return (await reservation.infer(ready, deadline)).logits

    async def _respond(self, answer: Answer, accept_encoding: str | None) -> Response:
        body, media_type, headers = answer.body, "application/json", dict[str, str]()
        if answer.json_size is not None:
            media_type, headers[HEADER] = "application/octet-stream", str(answer.json_size)
        coding = None if accept_encoding is None else accepted_coding(accept_encoding)
        if coding is not None:
            body = await compressed(body, coding, self.service.decoders.threads)
            headers["Content-Encoding"] = coding
        return Response(body, headers=headers, media_type=media_type)


def _good(index: int, image: NDArray[np.uint8] | ImageError) -> NDArray[np.uint8]:
    """Raises a Problem that names a bad image: 413 where it is over the size limits, else 400."""
    if isinstance(image, ImageError):
        status = 413 if isinstance(image, ImageTooLargeError) else 400
        raise Problem(status, f"image {index}: {image_failure(image)}")
    return image
