"""The attention's tail alone: bytes a second beside those of a plain copy of as many bytes."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.plan import KernelCase, kernel_cases
from benchmarks.gpu.records import KernelResult, Times, row, status_of
from lct_deploy.errors import RuntimeUnavailableError
from lct_deploy.models.lct import LinearContextTransform

GROUPS, EPSILON = 64, 1e-5
ROUNDS = 15
# Every launch works on another set of tensors, so that none finds its own in the cache.
FOOTPRINT = 512 << 20
MOST_SETS = 64
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}
_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

Launch = Callable[[int], object]


def measure(deadline: Callable[[], float]) -> Iterator[list[dict[str, Any]]]:
    """Rows, a case at a time, until less than nothing is left of `deadline()` seconds."""
    for case in kernel_cases():
        if deadline() <= 0:
            return
        try:
            result = _measure(case)
        except Exception as error:  # whatever stands in the way becomes the row
            result = KernelResult(status=status_of(error))
        yield [row(case, result)]


def _measure(case: KernelCase) -> KernelResult:
    if not torch.cuda.is_available():
        raise RuntimeUnavailableError(f"torch {torch.__version__} has no CUDA")
    shape = (case.batch, case.channels, case.size, case.size)
    dtype, layout = _TYPES[case.dtype], _layout(case)
    item = torch.empty((), dtype=dtype).element_size()
    tensor_bytes = int(np.prod(shape)) * item
    floor = 3 * tensor_bytes  # X and the identity read, Y written
    sets = max(2, min(MOST_SETS, FOOTPRINT // floor))
    xs, identities = (
        [torch.randn(shape, device="cuda").to(dtype).contiguous(memory_format=layout) for _ in range(sets)]
        for _ in range(2)
    )
    module = LinearContextTransform(case.channels, GROUPS, epsilon=EPSILON).cuda()
    torch.nn.init.normal_(module.w)
    launch = _launcher(case, module, xs, identities)
    with torch.inference_mode():
        times = Times.of(_samples(launch, sets))
        copies = _copies(floor, sets)
        status = _status(case, module, launch, xs[0], identities[0])
    return KernelResult(
        status=status,
        bytes_floor=floor,
        times=times,
        gigabytes_per_second=round(floor / times.median_ms / 1e6, 1),
        copy_gigabytes_per_second=round(floor / copies.median_ms / 1e6, 1),
    )


def _layout(case: KernelCase) -> torch.memory_format:
    return torch.channels_last if case.layout == "nhwc" else torch.contiguous_format


def _launcher(
    case: KernelCase, module: LinearContextTransform, xs: list[torch.Tensor], identities: list[torch.Tensor]
) -> Launch:
    if case.form == "eager":

        def eager(index: int) -> torch.Tensor:
            return torch.relu(module(xs[index]) + identities[index])

        return eager
    from lct_deploy.kernels.gpu.torch_operator import attention_tail

    w, b = module.w.detach(), module.b.detach()

    def fused(index: int) -> torch.Tensor:
        return attention_tail(xs[index], identities[index], w, b, GROUPS, EPSILON, True)

    return fused


def _copies(floor: int, sets: int) -> Times:
    """A copy that reads half of the bytes and writes the other half."""
    sources, targets = (
        [torch.empty(floor // 2, dtype=torch.uint8, device="cuda") for _ in range(sets)] for _ in range(2)
    )
    return Times.of(_samples(lambda i: targets[i].copy_(sources[i]), sets))


def _samples(launch: Launch, sets: int) -> list[float]:
    """Milliseconds a launch, by the GPU's own clock; a graph, so that the CPU does not hold it up."""
    for index in range(sets):
        launch(index)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for index in range(sets):
            launch(index)
    samples: list[float] = []
    for _ in range(ROUNDS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        samples.append(begin.elapsed_time(end) / sets)
    return samples


def _status(
    case: KernelCase,
    module: LinearContextTransform,
    launch: Launch,
    x: torch.Tensor,
    identity: torch.Tensor,
) -> str:
    """Whether the launch gives what the equations say, in float64."""
    gate = module.double().gate(x.double())
    expected = torch.relu(x.double() * gate[:, :, None, None] + identity.double())
    module.float()
    found = launch(0)
    assert isinstance(found, torch.Tensor)  # noqa: S101
    error = float((found.double() - expected).abs().max() / expected.abs().max())
    return "ok" if error <= TOLERANCE[case.dtype] else f"wrong: relative error {error:.1e}"
