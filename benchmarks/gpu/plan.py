"""What is measured, in which order, and how long it may take: all of it fits into eight minutes."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lct_deploy.kernels.gpu.spec import ElementType, Layout
from lct_deploy.manifest import Precision

Attention = Literal["none", "native", "fused", "plugin"]

TOTAL_SECONDS = 470.0  # what is left of eight minutes after starting and writing
BATCHES = (32, 1, 128, 8, 256, 64, 2, 16, 4)  # what is cut when time runs out is at the end
COMPILED_BATCHES = (32, 1, 128)  # torch.compile takes its time for each

# Of each runtime, in the order of their weight; a precision that is not here does not exist for it.
PRECISIONS: dict[str, tuple[Precision, ...]] = {
    "torch eager": ("fp16", "fp32", "tf32", "bf16"),
    "torch compile": ("fp16", "fp32", "bf16", "tf32"),
    "onnxruntime cuda": ("fp16", "fp32", "int8"),
    "tensorrt": ("fp16", "int8", "fp8", "tf32", "bf16", "fp32"),
    "tensorrt-rtx": ("fp16", "int8", "fp8", "tf32", "bf16", "fp32"),
}
# The plain network first: what the others are compared with.
ATTENTIONS: dict[str, tuple[Attention, ...]] = {
    "torch eager": ("none", "native", "fused"),
    "torch compile": ("none", "fused", "native"),
    "onnxruntime cuda": ("none", "native"),
    "tensorrt": ("none", "native", "plugin"),
    "tensorrt-rtx": ("none", "native", "plugin"),
}

_KINDS: tuple[tuple[ElementType, Layout], ...] = (
    ("fp16", "nhwc"),
    ("fp32", "nhwc"),
    ("bf16", "nhwc"),
    ("fp16", "nchw"),
    ("fp32", "nchw"),
)

KERNEL = "kernel"
PREPARE = "prepare"


@dataclass(frozen=True, kw_only=True)
class Section:
    """A process of its own, so that a crash or a hang costs no other section its results."""

    name: str
    seconds: float


SECTIONS = (
    Section(name=PREPARE, seconds=80),
    Section(name=KERNEL, seconds=60),
    Section(name="torch eager", seconds=45),
    Section(name="onnxruntime cuda", seconds=45),
    Section(name="torch compile", seconds=90),
    Section(name="tensorrt", seconds=100),
    Section(name="tensorrt-rtx", seconds=45),
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One network on one runtime, at one batch."""

    runtime: str
    attention: Attention
    precision: Precision
    batch: int


@dataclass(frozen=True, kw_only=True)
class KernelCase:
    """The kernel at one stage of ResNet-50; `form` is ours, or PyTorch's own operators."""

    form: Literal["fused", "eager"]
    stage: int
    channels: int
    size: int
    batch: int
    dtype: ElementType
    layout: Layout


@dataclass(frozen=True, kw_only=True)
class Group:
    """Cases that are timed in turn, so that what else the GPU does meets all of them."""

    precision: Precision
    batch: int
    cases: tuple[Case, ...] = field(default=())


def groups(runtime: str) -> list[Group]:
    """All cases of a runtime: the batches of its first precision, then those of the next."""
    batches = COMPILED_BATCHES if runtime == "torch compile" else BATCHES
    return [
        Group(
            precision=precision,
            batch=batch,
            cases=tuple(
                Case(runtime=runtime, attention=attention, precision=precision, batch=batch)
                for attention in ATTENTIONS[runtime]
            ),
        )
        for precision, batch in itertools.product(PRECISIONS[runtime], batches)
    ]


def kernel_cases() -> list[KernelCase]:
    """Every stage at every batch, in the networks' usual layout and type first."""
    return list(_kernel_cases())


def _kernel_cases() -> Iterator[KernelCase]:
    stages = ((1, 256, 56), (2, 512, 28), (3, 1024, 14), (4, 2048, 7))
    for dtype, layout in _KINDS:
        for batch, (stage, channels, size) in itertools.product((32, 128, 1, 8, 256, 64), stages):
            for form in ("fused", "eager"):
                yield KernelCase(
                    form=form,
                    stage=stage,
                    channels=channels,
                    size=size,
                    batch=batch,
                    dtype=dtype,
                    layout=layout,
                )


def allowance(sections: Sequence[Section], index: int, elapsed: float, total: float = TOTAL_SECONDS) -> float:
    """Seconds for a section: all that is left, but for what the later ones are due."""
    return total - elapsed - sum(section.seconds for section in sections[index + 1 :])
