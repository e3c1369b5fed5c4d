"""What a GPU kernel computes and what compiling it gives: plain values, without Triton or torch."""

from dataclasses import dataclass
from typing import Literal

from lct_deploy.architecture import DEFAULT_EPSILON, check_groups, legal_groups
from lct_deploy.errors import UsageError

ElementType = Literal["fp32", "fp16", "bf16"]
Layout = Literal["nhwc", "nchw"]

# Within a sample the kernels count in 32 bits.
MAX_ELEMENTS = 2**31 - 1

ITEM_BYTES: dict[ElementType, int] = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True, kw_only=True)
class KernelSpec:
    """One shape of Y = ReLU(X·σ(w⊙ẑ+b) + identity), any number of samples.

    X, identity and Y have the type `dtype` and the order `layout` in memory, w and b float32; what
    lies between is float32. Without `residual` nothing is added, without `relu` nothing cut off.

    Raises ArchitectureError where the groups do not fit the channels, UsageError for sizes below 1 or of
    more elements than can be counted.
    """

    channels: int
    pixels: int
    groups: int
    dtype: ElementType
    layout: Layout
    residual: bool = True
    relu: bool = True
    epsilon: float = DEFAULT_EPSILON

    def __post_init__(self) -> None:
        if self.channels < 1 or self.pixels < 1:
            raise UsageError(f"a tensor of {self.channels} channels × {self.pixels} pixels has no elements")
        if self.channels * self.pixels > MAX_ELEMENTS:
            raise UsageError(
                f"a tensor of {self.channels} channels × {self.pixels} pixels has more elements than the "
                f"attention kernels can count: {MAX_ELEMENTS}"
            )
        if not self.epsilon > 0:
            raise UsageError(f"epsilon is {self.epsilon}; it must be positive")
        legal = legal_groups((self.channels,))
        check_groups(self.groups, self.channels, layer="attention kernel", legal=legal)

    @property
    def group_size(self) -> int:
        """M = C/G of the paper."""
        return self.channels // self.groups

    @property
    def item_bytes(self) -> int:
        return ITEM_BYTES[self.dtype]

    def bytes_floor(self, samples: int) -> int:
        """What no kernel can do with less than: X and identity read once, Y written once, w and b."""
        tensors = 3 if self.residual else 2
        return tensors * samples * self.channels * self.pixels * self.item_bytes + 2 * 4 * self.channels


@dataclass(frozen=True, kw_only=True)
class CompiledKernel:
    """One kernel for one generation of GPUs, launched with pointers alone.

    `arguments` names the pointers in their order, of "x", "identity", "w", "b", "partials", "y"; each
    16-byte aligned. `partials` is a workspace of `workspace_bytes(samples)` bytes, whose content need
    not be kept between the forward passes.
    """

    ptx: str
    name: str
    capability: int
    arguments: tuple[str, ...]
    threads: int
    programs_per_sample: int
    shared_bytes: int
    registers: int
    spills: int
    workspace_bytes_per_sample: int = 0

    def grid(self, samples: int) -> tuple[int, int, int]:
        return samples * self.programs_per_sample, 1, 1

    def workspace_bytes(self, samples: int) -> int:
        return samples * self.workspace_bytes_per_sample
