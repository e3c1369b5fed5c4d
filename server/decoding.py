"""Encoded images to the network's input, in threads where that pays."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lct_deploy.errors import ImageError
from lct_deploy.preprocessing import Preprocessing, load_pixels, preprocess, read_header
from server.observability.record import current_record
from server.refusals import DeadlineError

# What a single thread decodes in a few milliseconds.
SMALL_BYTES = 256 << 10
SMALL_PIXELS = 1_000_000

Decoded = NDArray[np.uint8] | ImageError


class Decoders:
    """A pool of threads.

    With one thread small images are decoded in the event loop's own: handing them over and back, with
    Python's lock at both ends, costs about as much as decoding them. Large ones never hold up the loop.
    """

    def __init__(self, threads: int) -> None:
        self.threads = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._small_at_once = threads == 1
        self._turn = asyncio.Lock()  # between two small images the event loop does what else there is

    async def decode(
        self, bodies: Sequence[bytes], preprocessing: Preprocessing, deadline: float
    ) -> list[Decoded]:
        """Each image (crop, crop, 3) uint8, or what is wrong with it, in the order of `bodies`.

        Raises DeadlineError, before anything is decoded, where `deadline` (`time.monotonic`) is over.
        """
        started = time.perf_counter()
        if len(bodies) == 1 and self._small_at_once and len(bodies[0]) <= SMALL_BYTES:
            decoded = [await self._decode_here(bodies[0], preprocessing, deadline)]
        else:
            decoded = await self._decode_in_threads(bodies, preprocessing, deadline)
        if (record := current_record()) is not None:
            record.stage("decode", time.perf_counter() - started, started)
        return decoded

    def close(self) -> None:
        self.threads.shutdown(wait=True)

    async def _decode_in_threads(
        self, bodies: Sequence[bytes], preprocessing: Preprocessing, deadline: float
    ) -> list[Decoded]:
        loop = asyncio.get_running_loop()
        jobs = [loop.run_in_executor(self.threads, _decode, body, preprocessing, deadline) for body in bodies]
        return await asyncio.gather(*jobs)

    async def _decode_here(self, body: bytes, preprocessing: Preprocessing, deadline: float) -> Decoded:
        async with self._turn:
            await asyncio.sleep(0)  # answers go out, and images that have come are reserved their slots
            _check(deadline)
            try:
                image = read_header(body)
            except ImageError as error:
                return error
            if image.width * image.height <= SMALL_PIXELS:
                return _finish(image, preprocessing)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.threads, _finish, image, preprocessing)


def _decode(body: bytes, preprocessing: Preprocessing, deadline: float) -> Decoded:
    _check(deadline)
    try:
        return _finish(read_header(body), preprocessing)
    except ImageError as error:
        return error


def _finish(image: Image.Image, preprocessing: Preprocessing) -> Decoded:
    try:
        return preprocess(load_pixels(image), preprocessing)
    except ImageError as error:
        return error


def _check(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise DeadlineError("the request was not answered before its deadline")
