"""Images of a BYTES tensor: decoded and preprocessed as training did it."""

import asyncio
import time
from concurrent.futures import Executor

import numpy as np
from numpy.typing import NDArray

from lct_deploy.errors import ImageError, ImageTooLargeError
from lct_deploy.preprocessing import Preprocessing, decode
from server.problems import Problem, image_failure
from server.v2.request import Encoded


async def decode_images(
    encoded: Encoded, preprocessing: Preprocessing, decoders: Executor, deadline: float
) -> list[NDArray[np.uint8]]:
    """The model's inputs for all the files, decoded side by side.

    Raises a Problem that names the first bad one: 413 where it is over the size limits, else 400; 504 where
    there is no time left to decode.
    """
    loop = asyncio.get_running_loop()
    jobs = [
        loop.run_in_executor(decoders, _decode_one, index, file, preprocessing, deadline)
        for index, file in enumerate(encoded.files)
    ]
    results = await asyncio.gather(*jobs)
    for result in results:
        if isinstance(result, Problem):
            raise result
    return [result for result in results if not isinstance(result, Problem)]


def _decode_one(
    index: int, file: bytes | memoryview, preprocessing: Preprocessing, deadline: float
) -> NDArray[np.uint8] | Problem:
    if time.monotonic() > deadline:
        return Problem(504, "the deadline was over before all images were decoded")
    try:
        return decode(bytes(file), preprocessing)
    except ImageError as error:
        status = 413 if isinstance(error, ImageTooLargeError) else 400
        return Problem(status, f"image {index}: {image_failure(error)}")
