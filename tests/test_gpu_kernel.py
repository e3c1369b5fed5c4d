"""The GPU kernels in Triton's interpreter against equations (2) to (5) in float64, and their plans."""

import dataclasses
from collections.abc import Generator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lct_deploy.errors import ArchitectureError, UsageError
from lct_deploy.kernels.gpu.plan import ON_CHIP_BYTES, SECTOR_BYTES, plan
from lct_deploy.kernels.gpu.spec import KernelSpec
from tests.attention_tail import (
    DTYPES,
    LAYOUTS,
    Interpreter,
    check,
    random_case,
    resnet_specs,
    run_kernel,
    spec_name,
)

SMALL = KernelSpec(channels=32, pixels=35, groups=8, dtype="fp32", layout="nhwc")
# The images of a detector's first stage, too large for one pass, and a single group wider than a tile.
TWO_PASSES = [
    KernelSpec(channels=16, pixels=113 * 111, groups=4, dtype="fp16", layout="nhwc"),
    KernelSpec(channels=8, pixels=112 * 112, groups=2, dtype="fp32", layout="nchw"),
    KernelSpec(channels=2048, pixels=49, groups=1, dtype="bf16", layout="nhwc"),
    KernelSpec(channels=384, pixels=15 * 15, groups=1, dtype="fp32", layout="nchw"),
    KernelSpec(channels=48, pixels=97 * 89, groups=8, dtype="bf16", layout="nhwc", residual=False),
]
# What differs in how it is divided or read; the interpreter takes a second for each.
INTERPRETED = [
    spec
    for spec in resnet_specs()
    if spec.dtype == "fp32" or (spec.layout == "nhwc" and (spec.dtype == "fp16" or spec.pixels == 49))
]


@pytest.fixture(scope="module")
def interpreter() -> Generator[Interpreter]:
    interpreter = Interpreter()
    yield interpreter
    interpreter.close()


@st.composite
def specs(draw: st.DrawFn, pixels: int = 70) -> KernelSpec:
    """Any m, of which most are no powers of two, and any image."""
    groups = draw(st.integers(1, 9))
    return KernelSpec(
        channels=groups * draw(st.integers(2, 12)),
        pixels=draw(st.integers(1, pixels)),
        groups=groups,
        dtype=draw(st.sampled_from(list(DTYPES))),
        layout=draw(st.sampled_from(LAYOUTS)),
        residual=draw(st.booleans()),
        relu=draw(st.booleans()),
        epsilon=draw(st.sampled_from([1e-8, 1e-5, 1e-2])),
    )


@pytest.mark.parametrize("spec", INTERPRETED, ids=spec_name)
def test_every_attention_of_resnet_50_and_101(interpreter: Interpreter, spec: KernelSpec) -> None:
    assert plan(spec).form == "one-pass"
    case = random_case(spec)
    check(case, interpreter.run(case))


@settings(max_examples=25, deadline=None)
@given(spec=specs(), samples=st.integers(1, 3), seed=st.integers(0, 2**32 - 1))
def test_any_groups_images_types_and_layouts(
    interpreter: Interpreter, spec: KernelSpec, samples: int, seed: int
) -> None:
    case = random_case(spec, samples=samples, seed=seed)
    check(case, interpreter.run(case))


@pytest.mark.parametrize("spec", TWO_PASSES, ids=spec_name)
def test_what_does_not_fit_on_chip_takes_two_passes(interpreter: Interpreter, spec: KernelSpec) -> None:
    assert plan(spec).form == "two-pass"
    case = random_case(spec)
    once = interpreter.run(case)
    check(case, once)
    assert torch.equal(once, interpreter.run(case))  # bit for bit: no sum depends on who comes first


@pytest.mark.parametrize("dtype", DTYPES)
def test_groups_of_nearly_equal_means(interpreter: Interpreter, dtype: str) -> None:
    """E[z²] − E[z]² would lose the variance in z's square; ε decides what is left."""
    spec = dataclasses.replace(SMALL, dtype=dtype)
    for scale, offset in ((0.0, 0.0), (0.0, 3.0), (1e-3, 1.0), (1e-6, 1.0)):
        case = random_case(spec, scale=scale, offset=offset)
        check(case, interpreter.run(case))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_variance_small_beside_the_mean_is_kept(interpreter: Interpreter, layout: str) -> None:
    """Means of 1000 ± 0.01: in float32 E[z²] − E[z]² gives 0 or worse, far from the 1e-4 that it is."""
    spec = dataclasses.replace(SMALL, layout=layout, pixels=1, epsilon=1e-8)
    case = random_case(spec, scale=0.01, offset=1000.0)
    check(case, interpreter.run(case))


@pytest.mark.parametrize(("dtype", "largest"), [("fp32", 1e30), ("fp16", 6e4), ("bf16", 1e30)])
def test_sums_of_large_values_do_not_overflow(interpreter: Interpreter, dtype: str, largest: float) -> None:
    """A sum of two such in fp16 is infinite already."""
    spec = dataclasses.replace(SMALL, dtype=dtype, pixels=300)
    case = random_case(spec, scale=0.0, offset=largest)
    check(case, interpreter.run(case))


def test_saturated_gates_are_zero_and_one(interpreter: Interpreter) -> None:
    case = random_case(dataclasses.replace(SMALL, residual=False, relu=False))
    sign = torch.where(torch.arange(SMALL.channels) % 2 == 0, 1.0, -1.0)
    case.tensors["w"].zero_()
    case.tensors["b"].copy_(200 * sign)
    y = interpreter.run(case)
    assert torch.equal(y[..., ::2], case.tensors["x"][..., ::2])
    assert not y[..., 1::2].any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_a_number_spoils_its_group_and_no_other(interpreter: Interpreter, value: float) -> None:
    """As in PyTorch: a ReLU that turns NaN into 0 would hide a broken network."""
    case = random_case(SMALL, samples=2)
    case.tensors["x"][1, 20, 9] = value
    y = interpreter.run(case)
    spoiled = y.isnan()
    assert spoiled[1, :, 8:12].all()
    assert spoiled.sum() == SMALL.pixels * SMALL.group_size


@pytest.mark.parametrize("spec", [SMALL, TWO_PASSES[3]], ids=spec_name)
def test_the_check_above_finds_a_wrong_gate_and_a_missing_element(
    interpreter: Interpreter, spec: KernelSpec
) -> None:
    case = random_case(spec)
    y = interpreter.run(case)
    with pytest.raises(AssertionError, match="times the tolerance"):
        check(case, y + 1e-3 * case.tensors["x"])
    y[0, 3, 5] = float("nan")
    with pytest.raises(AssertionError, match="1 elements are not finite"):
        check(case, y)


@settings(max_examples=300, deadline=None)
@given(spec=specs(pixels=200_000))
def test_a_plan_covers_every_element_once_within_its_limits(spec: KernelSpec) -> None:
    chosen = plan(spec)
    assert spec.channels % chosen.span == 0
    assert chosen.span % spec.group_size == 0
    assert (chosen.parts - 1) * chosen.width < chosen.span <= chosen.parts * chosen.width
    pixels = chosen.tile * chosen.tiles
    assert (chosen.ranges - 1) * pixels < spec.pixels <= chosen.ranges * pixels
    assert (chosen.tiles - 1) * chosen.tile < spec.pixels
    for number in (chosen.tile, chosen.width, chosen.warps):
        assert number & (number - 1) == 0
    if chosen.form == "one-pass":
        assert pixels * chosen.width * spec.item_bytes <= ON_CHIP_BYTES
        assert chosen.bytes_moved(spec, 3) == spec.bytes_floor(3)
    else:
        assert chosen.bytes_moved(spec, 3) > spec.bytes_floor(3)


def test_rows_of_channels_fill_whole_sectors() -> None:
    for spec in resnet_specs():
        chosen = plan(spec)
        row = chosen.span if spec.layout == "nhwc" else spec.pixels
        assert row * spec.item_bytes >= SECTOR_BYTES


def test_a_spec_that_no_kernel_can_serve_is_refused() -> None:
    with pytest.raises(ArchitectureError, match="legal group counts"):
        dataclasses.replace(SMALL, groups=5)
    with pytest.raises(UsageError, match="no elements"):
        dataclasses.replace(SMALL, pixels=0)
    with pytest.raises(UsageError, match="more elements than"):
        dataclasses.replace(SMALL, pixels=2**31 // SMALL.channels)
    with pytest.raises(UsageError, match="epsilon"):
        dataclasses.replace(SMALL, epsilon=0.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no NVIDIA GPU")
@pytest.mark.parametrize("spec", [*resnet_specs(), *TWO_PASSES], ids=spec_name)
def test_on_a_gpu_the_kernels_compute_the_same(spec: KernelSpec) -> None:
    case = random_case(spec, samples=3)
    once = run_kernel(case, "cuda")
    check(case, once, interpreted=False)
    assert torch.equal(once, run_kernel(case, "cuda"))
