"""Decoding and inference without HTTP, in a process of its own: what a server cannot surpass.

`python -m benchmarks.serving.in_process BUNDLE` prints one JSON document. Photographs are decoded and
inferred in a closed loop; an arrangement says by which threads:

    decoders   threads that decode ahead of the inferences; 0: whoever infers decodes first
    runners    threads that infer
    threads    of each inference
    batch      images in an inference
"""

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.serving.command import run_command
from benchmarks.serving.photos import photos
from lct_deploy.bundle import Bundle, open_bundle
from lct_deploy.errors import UsageError
from lct_deploy.preprocessing import decode
from lct_deploy.runtime import Runtime, RuntimeOptions, open_bundled

WARM_UP_SECONDS = 0.5
ONE_WARM_UP = 5  # images
MIN_INFERENCES = 3

Image = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Arrangement:
    """Which threads do what."""

    decoders: int
    runners: int
    threads: int
    batch: int

    def __str__(self) -> str:
        decoding = f"{self.decoders} decoding" if self.decoders else "decoding too"
        return f"{self.runners} runners of {self.threads} threads, {decoding}, batch {self.batch}"


def arrangements(cores: int, batches: tuple[int, ...]) -> Iterator[Arrangement]:
    """Those that may be the best on so many cores; `batches` are the sizes worth trying."""
    for batch in batches:
        yield Arrangement(decoders=0, runners=cores, threads=1, batch=batch)
        yield Arrangement(decoders=cores, runners=1, threads=cores, batch=batch)
        if cores > 1:
            yield Arrangement(decoders=0, runners=2, threads=cores, batch=batch)
            yield Arrangement(decoders=1, runners=1, threads=cores, batch=batch)
            yield Arrangement(decoders=cores, runners=cores, threads=1, batch=batch)


class Photos:
    """Photographs in turn, for any number of threads."""

    def __init__(self, bundle: Bundle) -> None:
        self._photos = photos()
        self._preprocessing = bundle.manifest.input.preprocessing
        self._numbers = count()

    def decoded(self) -> Image:
        return decode(self._photos[next(self._numbers) % len(self._photos)], self._preprocessing)


def images_per_second(bundle: Bundle, arrangement: Arrangement, seconds: float) -> float:
    """What an arrangement does, after a moment to get going."""
    options = RuntimeOptions(threads=arrangement.threads)
    with closing(open_bundled(bundle, "onnxruntime", options)) as runtime:
        work = _Work(Photos(bundle), runtime, arrangement)
        time.sleep(WARM_UP_SECONDS)
        began = time.perf_counter()
        time.sleep(seconds)
        done = sorted(moment for moment in work.stop() if began <= moment[0] <= began + seconds)
    # From the end of one inference to that of another: large batches would else be cut in two.
    if len(done) < MIN_INFERENCES:
        raise UsageError(f"{len(done)} inferences in {seconds} s are too few", hint="--seconds longer")
    return sum(images for _, images in done[1:]) / (done[-1][0] - done[0][0])


class _Work:
    """Threads of an arrangement at work."""

    def __init__(self, source: Photos, runtime: Runtime, arrangement: Arrangement) -> None:
        self._source, self._runtime, self._batch = source, runtime, arrangement.batch
        self._going = True
        self._done: list[tuple[float, int]] = []
        self._ready: queue.Queue[Image] = queue.Queue(2 * arrangement.batch * arrangement.runners)
        take = self._take_ready if arrangement.decoders else source.decoded
        jobs = [partial(self._run, take)] * arrangement.runners + [self._decode] * arrangement.decoders
        self._threads = [threading.Thread(target=job) for job in jobs]
        for thread in self._threads:
            thread.start()

    def stop(self) -> list[tuple[float, int]]:
        """When each inference was done, and how many images it had."""
        self._going = False
        for thread in self._threads:
            thread.join()
        return self._done

    def _run(self, take: Callable[[], Image | None]) -> None:
        while self._going:
            images = [image for _ in range(self._batch) if (image := take()) is not None]
            if images:
                self._runtime.infer(np.stack(images))
                self._done.append((time.perf_counter(), len(images)))

    def _take_ready(self) -> Image | None:
        try:
            return self._ready.get(timeout=0.1)
        except queue.Empty:
            return None

    def _decode(self) -> None:
        while self._going:
            image = self._source.decoded()
            while self._going:
                try:
                    self._ready.put(image, timeout=0.1)
                    break
                except queue.Full:
                    continue


def one_at_a_time(bundle: Bundle, threads: int, seconds: float) -> list[float]:
    """Milliseconds of each image: decoded and inferred, one after the other."""
    source, times = Photos(bundle), list[float]()
    with closing(open_bundled(bundle, "onnxruntime", RuntimeOptions(threads=threads))) as runtime:
        for _ in range(ONE_WARM_UP):
            runtime.infer(source.decoded()[None])
        end = time.perf_counter() + seconds
        while (began := time.perf_counter()) < end:
            runtime.infer(source.decoded()[None])
            times.append(1e3 * (time.perf_counter() - began))
    return times


def main(
    bundle: Path,
    seconds: Annotated[float, typer.Option(min=0.1)] = 5.0,
    threads: Annotated[int, typer.Option(min=1, help="Of each inference.")] = 1,
    runners: Annotated[int, typer.Option(min=1)] = 1,
    decoders: Annotated[int, typer.Option(min=0)] = 0,
    batch: Annotated[int, typer.Option(min=1)] = 1,
    one: Annotated[bool, typer.Option("--one", help="One image after the other: what each takes.")] = False,
) -> None:
    """Decode and infer without HTTP."""
    opened = open_bundle(bundle)
    if one:
        milliseconds = one_at_a_time(opened, threads, seconds)
        print(json.dumps({"threads": threads, "milliseconds": milliseconds}))
        return
    arrangement = Arrangement(decoders=decoders, runners=runners, threads=threads, batch=batch)
    done = images_per_second(opened, arrangement, seconds)
    print(json.dumps({**asdict(arrangement), "images_per_second": round(done, 3)}))


if __name__ == "__main__":
    run_command(main)
