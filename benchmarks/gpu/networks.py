"""Times of whole networks: every group's cases open at once, then timed in turn."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.plan import Case, Group, groups
from benchmarks.gpu.prepared import SIZE, load_reference
from benchmarks.gpu.records import Result, Times, row, status_of
from benchmarks.gpu.runners import Runner, open_runner
from benchmarks.stages import GpuMemory, median_stages
from lct_deploy.parity import compare_logits, in_batches
from lct_deploy.runtime.base import Stages

LEAST_ROUNDS = 5
SECONDS = 0.4  # for a case at one batch, beside what its least rounds take
LAUNCHES = 8  # in a device-time sample
# A runner whose cosine with the float32 logits is lower computes something else.
LEAST_COSINE = {"fp32": 0.99999, "tf32": 0.999, "fp16": 0.999, "bf16": 0.99, "int8": 0.95, "fp8": 0.95}


@dataclass(kw_only=True)
class _Open:
    case: Case
    runner: Runner
    parity: Result
    failed: str | None = None  # while it was timed
    host: list[float] = field(default_factory=list[float])
    device: list[float] = field(default_factory=list[float])
    stages: Stages = field(default_factory=Stages)


def measure(section: str, work: Path, deadline: Callable[[], float]) -> Iterator[list[dict[str, Any]]]:
    """Rows of a runtime, a group at a time, until less than nothing is left of `deadline()` seconds."""
    for group in groups(section):
        if deadline() <= 0:
            return
        yield list(_group(group, work, deadline))


def _group(group: Group, work: Path, deadline: Callable[[], float]) -> Iterator[dict[str, Any]]:
    opened: list[_Open] = []
    with ExitStack() as stack:
        for case in group.cases:
            try:
                opened.append(_open(case, work, stack))
            except Exception as error:  # whatever a runtime raises becomes its row
                yield row(case, Result(status=status_of(error)))
        images = np.random.default_rng(0).integers(0, 256, (group.batch, SIZE, SIZE, 3), dtype=np.uint8)
        _time(opened, images, deadline)
    for one in opened:
        yield row(one.case, _result(one))


def _open(case: Case, work: Path, stack: ExitStack) -> _Open:
    """With its parity, and what it has taken of the GPU's memory."""
    if case.runtime.startswith("torch"):
        _empty_cache()
    memory = GpuMemory()
    with memory.watched():
        runner = open_runner(case, work)
        stack.callback(runner.close)
        parity = _parity(case, runner, work)
    return _Open(case=case, runner=runner, parity=replace(parity, gpu_mib=memory.peak_mib))


def _empty_cache() -> None:
    """PyTorch keeps what it was given before: a network would seem to take less than it does."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _parity(case: Case, runner: Runner, work: Path) -> Result:
    """Against PyTorch's float32 logits on the CPU; also the first call, which pays for all others.

    Whole batches, where need be of the same images again: a smaller one might run other code.
    """
    reference = load_reference(work, case.attention)
    count, size = len(reference.images), reference.images.shape[1:]
    images = np.resize(reference.images, (max(count, case.batch), *size))
    (logits,) = in_batches(lambda x: [runner.infer(x)], images, case.batch)
    logits = logits[:count]
    if not np.isfinite(logits).all():
        return Result(status="wrong: NaN or infinite logits")
    found = compare_logits(reference.logits, logits, None)
    agrees = found.min_cosine >= LEAST_COSINE[case.precision]
    return Result(
        status="ok" if agrees else f"wrong: cosine {found.min_cosine:.4f}",
        max_rel_error=found.max_rel_error,
        min_cosine=found.min_cosine,
    )


def _time(opened: list[_Open], images: np.ndarray, deadline: Callable[[], float]) -> None:
    """Fill the samples of all, in turn; one that fails is left out from then on."""
    until = time.perf_counter() + SECONDS * len(opened)
    rounds = 0
    while rounds < LEAST_ROUNDS or (time.perf_counter() < until and deadline() > 0):
        for one in [one for one in opened if one.failed is None]:
            _sample(one, images)
        rounds += 1
    for one in [one for one in opened if one.failed is None]:
        _profile(one, images)


def _sample(one: _Open, images: np.ndarray) -> None:
    try:
        one.host.append(_host(one.runner, images))
        if one.runner.launch is not None:
            one.device.append(_device(one.runner.launch))
    except Exception as error:  # as above
        one.failed = status_of(error)


def _profile(one: _Open, images: np.ndarray) -> None:
    try:
        one.stages = median_stages(one.runner.profile, images)
    except Exception as error:  # as above
        one.failed = status_of(error)


def _host(runner: Runner, images: np.ndarray) -> float:
    started = time.perf_counter()
    runner.infer(images)
    return 1e3 * (time.perf_counter() - started)


def _device(launch: Callable[[], object]) -> float:
    """Milliseconds of one of several launches, by the GPU's own clock."""
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    launch()
    begin.record()
    for _ in range(LAUNCHES):
        launch()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / LAUNCHES


def _result(one: _Open) -> Result:
    parity = one.parity
    return replace(
        parity,
        status=one.failed or parity.status,
        stages=one.stages,
        host=Times.of(one.host) if one.host else Times(),
        device=Times.of(one.device) if one.device else Times(),
    )
