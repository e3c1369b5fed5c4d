"""The GPU kernels compiled and assembled for every target without a GPU, and what they use there."""

import re

import pytest

from lct_deploy.errors import ExportError, UsageError
from lct_deploy.kernels.gpu.aot import CAPABILITIES, compile_kernel, without_scratch
from lct_deploy.kernels.gpu.spec import CompiledKernel, KernelSpec
from tests.attention_tail import resnet_specs, spec_name
from tests.test_gpu_kernel import SMALL, TWO_PASSES

# Every target has them: 64 Ki registers and 48 KiB of shared memory for a program that asks for no more.
REGISTER_FILE = 65536
SHARED_BYTES = 48 * 1024
# The widest tiles of each type, the layout without vectors, a matrix of groups, and two passes.
COVERING = [
    *(spec for spec in resnet_specs() if spec.layout == "nhwc" and spec.pixels == 3136),
    *(
        spec
        for spec in resnet_specs()
        if spec.layout == "nchw" and spec.pixels == 49 and spec.dtype == "fp16"
    ),
    TWO_PASSES[0],
]


def check(kernel: CompiledKernel, capability: int) -> None:
    assert kernel.spills == 0
    # Registers are given out to a warp in units of 256: 8 a thread.
    assert -(-kernel.registers // 8) * 8 * kernel.threads <= REGISTER_FILE
    assert kernel.shared_bytes <= SHARED_BYTES
    assert re.search(rf"^\.target sm_{capability}a?$", kernel.ptx, re.MULTILINE)
    assert kernel.ptx.count("_param_") == 2 * len(kernel.arguments)  # each declared, and loaded once
    assert f".entry {kernel.name}(" in kernel.ptx


@pytest.mark.parametrize("spec", resnet_specs(), ids=spec_name)
def test_every_attention_of_resnet_50_and_101_fits_without_spills(spec: KernelSpec) -> None:
    (kernel,) = compile_kernel(spec, 89)
    check(kernel, 89)
    assert kernel.arguments == ("x", "identity", "w", "b", "y")
    assert kernel.grid(3) == (3 * kernel.programs_per_sample, 1, 1)
    assert kernel.workspace_bytes(3) == 0
    if spec.dtype != "fp32":
        half = {"fp16": "f16", "bf16": "bf16"}[spec.dtype]
        assert re.search(rf"cvt\.rn\.{half}(x2)?\.f32", kernel.ptx)  # Y is rounded, not cut off


@pytest.mark.parametrize("capability", [known for known in CAPABILITIES if known != 89])
@pytest.mark.parametrize("spec", COVERING, ids=spec_name)
def test_every_target_takes_the_kernels(spec: KernelSpec, capability: int) -> None:
    for kernel in compile_kernel(spec, capability):
        check(kernel, capability)


def test_two_passes_are_two_kernels_and_a_workspace() -> None:
    sums, scale = compile_kernel(TWO_PASSES[1], 89)
    for kernel in (sums, scale):
        check(kernel, 89)
        assert kernel.workspace_bytes(3) % (3 * 4 * TWO_PASSES[1].channels) == 0
        assert kernel.workspace_bytes(3) > 0
    assert sums.arguments == ("x", "partials")
    assert scale.arguments == ("x", "identity", "w", "b", "partials", "y")


def test_without_an_identity_no_pointer_to_it_is_taken() -> None:
    plain = KernelSpec(
        channels=32, pixels=35, groups=8, dtype="fp32", layout="nhwc", residual=False, relu=False
    )
    (kernel,) = compile_kernel(plain, 80)
    check(kernel, 80)
    assert kernel.arguments == ("x", "w", "b", "y")


@pytest.mark.parametrize(("gpu", "made_for"), [(87, 86), (100, 90), (121, 120)])
def test_gpus_between_take_the_kernels_of_the_next_lower(gpu: int, made_for: int) -> None:
    assert compile_kernel(SMALL, gpu) == compile_kernel(SMALL, made_for)


def test_a_target_without_kernels_is_refused() -> None:
    with pytest.raises(UsageError, match="sm75"):
        compile_kernel(SMALL, 75)


def test_a_kernel_that_uses_scratch_memory_is_refused() -> None:
    (kernel,) = compile_kernel(SMALL, 80)
    assert without_scratch(kernel.ptx, 5) == kernel.ptx
    with pytest.raises(ExportError, match="5 pointers instead of 4"):
        without_scratch(kernel.ptx, 4)
    with pytest.raises(ExportError, match="no kernel"):
        without_scratch("// nothing", 5)
