"""`python -m benchmarks.measure.worker SUBJECT`: opens a subject, then takes the turns it reads from stdin.

A process of its own, so that memory is one subject's, and so that it can be halted while others have
their turn.
"""

import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from benchmarks.measure.messages import Failed, Opened, Subject, Taken, Turn
from benchmarks.measure.openers import Runner, open_runner
from benchmarks.serving.photos import photos
from benchmarks.stages import GpuMemory, gpu_memory, median_stages
from lct_deploy.bundle import Bundle, open_bundle
from lct_deploy.errors import LctDeployError
from lct_deploy.parity import compare_logits, in_batches
from lct_deploy.preprocessing import decode
from lct_deploy.runtime.base import Stages
from lct_deploy.runtime.flavours import is_flavour

LEAST = 3  # inferences of a turn, however long they take
DECODED = 9  # times that a photograph is decoded

Infer = Callable[[NDArray[np.uint8]], object]


def main() -> None:
    answers = _private_stdout()
    subject = Subject.model_validate_json(sys.argv[1])
    if subject.cores:
        os.sched_setaffinity(0, subject.cores)
    try:
        bundle = open_bundle(subject.bundle)
        memory = gpu_memory() if subject.provider != "cpu" or is_flavour(subject.runtime) else None
        with memory.watched() if memory else nullcontext():
            runner = open_runner(subject, bundle)
            opened = _opened(bundle, runner)
        turns = Turns(runner, bundle, memory)
        _say(answers, opened)
        for line in sys.stdin:
            _say(answers, turns.take(Turn.model_validate_json(line)))
    except LctDeployError as error:
        _say(answers, Failed(error=error.message, hint=error.hint))
    except Exception as error:  # of others' runtimes: a row says it
        _say(answers, Failed(error=f"{type(error).__name__}: {error}"))


class Turns:
    """Turns of one subject; the first of a batch, a warm-up, also finds out where its time goes."""

    def __init__(self, runner: Runner, bundle: Bundle, memory: GpuMemory | None) -> None:
        self._runner, self._bundle, self._memory = runner, bundle, memory
        self._stages: dict[int, Stages | None] = {}

    def take(self, turn: Turn) -> Taken:
        """Raises what the runtime raises."""
        shape = (turn.batch, self._bundle.manifest.input.height, self._bundle.manifest.input.width, 3)
        images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        with self._memory.watched() if self._memory else nullcontext():
            began = time.perf_counter()
            times = _repeat_in_threads(self._runner.infer, images, turn)
            seconds = time.perf_counter() - began
            if turn.batch not in self._stages:
                profile = self._runner.profile
                self._stages[turn.batch] = median_stages(profile, images) if profile else None
        return Taken(
            milliseconds=tuple(round(1e3 * value, 5) for value in times),
            seconds=seconds,
            rss_mib=_peak_mib(),
            gpu_mib=self._memory.peak_mib if self._memory else None,
            stages=self._stages[turn.batch],
        )


def _repeat_in_threads(infer: Infer, images: NDArray[np.uint8], turn: Turn) -> list[float]:
    end = time.perf_counter() + turn.seconds
    times: list[list[float]] = [[] for _ in range(turn.concurrency)]
    others = [threading.Thread(target=_repeat, args=(infer, images, end, own)) for own in times[1:]]
    for thread in others:
        thread.start()
    _repeat(infer, images, end, times[0])
    for thread in others:
        thread.join()
    return [value for own in times for value in own]


def _repeat(infer: Infer, images: NDArray[np.uint8], end: float, times: list[float]) -> None:
    """Seconds of each inference until `end`, of which some may be over it.

    One begins when the one before it ends: nothing that happens goes unrecorded.
    """
    clock = time.perf_counter
    began = clock()
    while len(times) < LEAST or began < end:
        infer(images)
        ended = clock()
        times.append(ended - began)
        began = ended


def _opened(bundle: Bundle, runner: Runner) -> Opened:
    """Others may be as far from PyTorch as they are; the row says how far."""
    golden = bundle.golden()
    (logits,) = in_batches(lambda images: [runner.infer(images)], golden.images, 1)
    parity = compare_logits(golden.logits, logits, None)
    return Opened(
        arch=bundle.manifest.arch,
        runtime=runner.runtime,
        precision=runner.precision,
        compiled_batches=runner.compiled_batches,
        device=runner.device,
        pixels=bundle.manifest.input.height,
        golden_error=parity.max_abs_error,
        golden_top1=parity.top1_agreement,
        preprocess_ms=_preprocess_ms(bundle),
    )


def _preprocess_ms(bundle: Bundle) -> float:
    preprocessing, times = bundle.manifest.input.preprocessing, list[float]()
    (photo,) = photos(1)
    for _ in range(DECODED):
        started = time.perf_counter()
        decode(photo, preprocessing)
        times.append(1e3 * (time.perf_counter() - started))
    return round(statistics.median(times), 4)


def _peak_mib() -> float:
    """Of this process; `getrusage` would count the memory of the parent that it was forked from too."""
    status = Path("/proc/self/status").read_text()
    kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return round(int(kib) / 1024, 1)


def _private_stdout() -> IO[str]:
    """Where answers go; what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return answers


def _say(answers: IO[str], message: BaseModel) -> None:
    answers.write(message.model_dump_json() + "\n")


if __name__ == "__main__":
    main()
