"""`lct::attention_tail` in PyTorch: what a custom operator owes it, gradients, and whole networks."""

import copy
from collections.abc import Callable, Generator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.registry import lookup_backend

from lct_deploy.architecture import model_config
from lct_deploy.errors import ArchitectureError, UsageError
from lct_deploy.kernels.gpu.torch_operator import _cuda, attention_tail, fuse_attention
from lct_deploy.models import LinearContextTransform, ResNet, build_model
from tests.attention_tail import Interpreter
from tests.conftest import random_network
from tests.test_imports import run_without

EPSILON = 1e-5
FORMATS = [torch.contiguous_format, torch.channels_last]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no NVIDIA GPU")


def inputs(
    dtype: torch.dtype = torch.float32,
    *,
    memory_format: torch.memory_format = torch.contiguous_format,
    device: str = "cpu",
    requires_grad: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, identity, w and b of 12 channels for groups of 3."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x = (normal(2, 12, 3, 5) + normal(2, 12, 1, 1)).to(memory_format=memory_format)
    tensors = (x, normal(2, 12, 3, 5).to(memory_format=memory_format), normal(12), normal(12))
    x, identity, w, b = (t.to(device, dtype).requires_grad_(requires_grad) for t in tensors)
    return x, identity, w, b


def in_order(network: ResNet, memory_format: torch.memory_format) -> ResNet:
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)
    return network


def module_tail(x: Tensor, identity: Tensor | None, w: Tensor, b: Tensor, relu: bool) -> Tensor:
    """What a block of lct_deploy.models computes."""
    attention = LinearContextTransform(12, 4, epsilon=EPSILON)
    y = torch.func.functional_call(attention, {"w": w, "b": b}, (x,))
    y = y if identity is None else y + identity
    return torch.relu(y) if relu else y


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("residual", [True, False])
def test_pytorch_finds_nothing_wrong_with_the_operator(dtype: torch.dtype, residual: bool) -> None:
    """Schema, fake tensors and their strides, autograd, and compiling with dynamic shapes."""
    for memory_format in FORMATS:
        x, identity, w, b = inputs(dtype, memory_format=memory_format, requires_grad=True)
        arguments = (x, identity if residual else None, w, b, 4, EPSILON, residual)
        torch.library.opcheck(attention_tail, arguments)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("relu", [True, False])
def test_on_the_cpu_it_equals_the_module(memory_format: torch.memory_format, relu: bool) -> None:
    x, identity, w, b = inputs(memory_format=memory_format)
    for added in (identity, None):
        y = attention_tail(x, added, w, b, 4, EPSILON, relu)
        assert torch.equal(y, module_tail(x, added, w, b, relu))
        assert y.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_16_bits_y_is_rounded_once(dtype: torch.dtype) -> None:
    x, identity, w, b = inputs(dtype)
    wide = attention_tail(x.double(), identity.double(), w.double(), b.double(), 4, EPSILON, True)
    y = attention_tail(x, identity, w, b, 4, EPSILON, True)
    assert y.dtype == dtype
    # The float64 result rounded to the type, or its neighbour where float32 fell beside a tie.
    assert torch.equal(y, wide.to(dtype))


@pytest.mark.parametrize("relu", [True, False])
def test_gradients_are_those_of_the_module_and_can_be_derived_again(relu: bool) -> None:
    full = inputs(torch.float64)
    x, identity, w, b = (t[:1, ..., :2] if t.dim() == 4 else t for t in full)
    x, identity, w, b = (t.clone().requires_grad_(True) for t in (x, identity, w, b))

    def operator(*tensors: Tensor) -> Tensor:
        x, identity, w, b = tensors
        return attention_tail(x, identity, w, b, 4, EPSILON, relu)

    assert torch.autograd.gradcheck(operator, (x, identity, w, b))
    assert torch.autograd.gradgradcheck(operator, (x, identity, w, b))
    seed = torch.randn_like(x)
    ours = torch.autograd.grad(operator(x, identity, w, b), (x, identity, w, b), seed)
    theirs = torch.autograd.grad(module_tail(x, identity, w, b, relu), (x, identity, w, b), seed)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their)


def test_a_network_gives_the_same_logits_and_gradients_with_the_operator() -> None:
    network = random_network(model_config("lct_resnet20", num_classes=5)).requires_grad_(True)
    fused = fuse_attention(copy.deepcopy(network))
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(fused(images), network(images))
    assert fused.state_dict().keys() == network.state_dict().keys()
    for model in (network, fused):
        model.train()(images).square().sum().backward()
    theirs = dict(network.named_parameters())
    for name, parameter in fused.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("memory_format", FORMATS)
def test_a_network_compiles_to_one_graph_with_the_operator_in_it(memory_format: torch.memory_format) -> None:
    network = in_order(random_network(model_config("lct_resnet20", num_classes=5)), memory_format)
    images = torch.randn(2, 3, 16, 16).to(memory_format=memory_format)
    wanted = network(images)
    called: list[object] = []

    def backend(graph: torch.fx.GraphModule, tensors: list[Tensor]) -> Callable[..., Any]:
        called.extend(node.target for node in graph.graph.nodes)
        return lookup_backend("aot_eager")(graph, tensors)

    torch.compiler.reset()
    compiled = torch.compile(fuse_attention(network), fullgraph=True, backend=backend)
    with torch.no_grad():
        assert torch.equal(compiled(images), wanted)
    assert called.count(torch.ops.lct.attention_tail.default) == 9


def test_training_compiles_too() -> None:
    x, identity, w, b = inputs(requires_grad=True)
    torch.compiler.reset()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def loss(x: Tensor, identity: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return attention_tail(x, identity, w, b, 4, EPSILON, True).square().sum()

    ours = torch.autograd.grad(loss(x, identity, w, b), (x, identity, w, b))
    plain = module_tail(x, identity, w, b, relu=True).square().sum()
    for our, their in zip(ours, torch.autograd.grad(plain, (x, identity, w, b)), strict=True):
        torch.testing.assert_close(our, their)


def test_only_the_whole_transform_is_swapped_in() -> None:
    for config in (
        model_config("se_resnet20"),
        model_config("resnet20"),
        model_config("lct_resnet20", normalize=False),
        model_config("lct_resnet20", transform=False),
    ):
        with pytest.raises(UsageError, match=r"layer1\.0\.attn is not the whole"):
            fuse_attention(build_model(config))


def test_tensors_that_do_not_belong_together_are_refused() -> None:
    x, identity, w, b = inputs()
    for tensors, message in (
        ((x[0], identity, w, b), "floating-point"),
        ((x.int(), identity, w, b), "floating-point"),
        ((x, identity[:1], w, b), "identity must be like x"),
        ((x, identity.half(), w, b), "identity must be like x"),
        ((x, identity, w[:4], b), "w must have the shape"),
        ((x, identity, w, b[None]), "b must have the shape"),
        ((x, identity, w.to("meta"), b), "x is on cpu"),
    ):
        with pytest.raises(UsageError, match=message):
            attention_tail(*tensors, 4, EPSILON, True)
    with pytest.raises(ArchitectureError, match="legal group counts"):
        attention_tail(x, identity, w, b, 5, EPSILON, True)


def test_no_images_give_no_images() -> None:
    x, identity, w, b = inputs()
    assert attention_tail(x[:0], identity[:0], w, b, 4, EPSILON, True).shape == (0, 12, 3, 5)


@pytest.fixture(scope="module")
def interpreter() -> Generator[Interpreter]:
    interpreter = Interpreter()
    yield interpreter
    interpreter.close()


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_cuda_launches_computes_the_same(
    interpreter: Interpreter, memory_format: torch.memory_format, dtype: torch.dtype
) -> None:
    """The operator's CUDA kernel on tensors of the CPU, in Triton's interpreter; strides of all kinds."""
    x, identity, w, b = inputs(dtype, memory_format=memory_format)
    sliced = torch.randn(2, 24, 3, 5).to(dtype)[:, ::2]
    apart = torch.stack((w, b), dim=1)
    for tensors in (
        (x, identity, w, b),
        (x, None, w.float(), b.double()),
        (x, identity.contiguous(), *apart.unbind(dim=1)),
        (sliced, identity, w, b),
        (x[:0], None, w, b),
    ):
        y = interpreter.call(_cuda, *tensors, 4, EPSILON, True)
        wanted = attention_tail(*tensors, 4, EPSILON, True)
        assert y.stride() == wanted.stride()
        torch.testing.assert_close(y, wanted, rtol=2 * torch.finfo(dtype).eps, atol=2e-6)


def test_two_passes_get_their_workspace(interpreter: Interpreter) -> None:
    _, _, w, b = inputs()
    x = torch.randn(1, 12, 120, 110).to(memory_format=torch.channels_last)
    y = interpreter.call(_cuda, x, None, w, b, 4, EPSILON, False)
    torch.testing.assert_close(y, attention_tail(x, None, w, b, 4, EPSILON, False), rtol=1e-5, atol=1e-5)


def test_the_kernel_has_no_64_bit_form() -> None:
    x, identity, w, b = inputs(torch.float64)
    with pytest.raises(UsageError, match=r"no torch\.float64"):
        _cuda(x, identity, w, b, 4, EPSILON, True)


def test_without_triton_cuda_says_what_to_install_and_the_cpu_works() -> None:
    code = (
        "import torch\n"
        "from lct_deploy.errors import RuntimeUnavailableError\n"
        "from lct_deploy.kernels.gpu.torch_operator import _cuda, attention_tail\n"
        "arguments = (torch.ones(1, 8, 2, 2), None, torch.ones(8), torch.ones(8), 2, 1e-5, True)\n"
        "attention_tail(*arguments)\n"
        "try:\n"
        "    _cuda(*arguments)\n"
        "except RuntimeUnavailableError as error:\n"
        "    print(error)\n"
    )
    done = run_without(("triton",), code)
    assert done.returncode == 0, done.stderr
    assert "needs the package triton" in done.stdout
    assert "pip install 'lct-deploy[kernel]'" in done.stdout


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_on_a_gpu_the_operator_computes_and_trains_as_on_the_cpu(
    memory_format: torch.memory_format, dtype: torch.dtype
) -> None:
    tensors = inputs(dtype, memory_format=memory_format, requires_grad=True)
    moved = inputs(dtype, memory_format=memory_format, requires_grad=True, device="cuda")
    torch.library.opcheck(attention_tail, (*moved, 4, EPSILON, True))
    wanted, y = (attention_tail(*given, 4, EPSILON, True) for given in (tensors, moved))
    near = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(y.cpu(), wanted, rtol=near, atol=near)
    theirs = torch.autograd.grad(wanted.float().square().sum(), tensors)
    ours = torch.autograd.grad(y.float().square().sum(), moved)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our.cpu(), their, rtol=16 * near, atol=64 * near)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:TensorFloat32 tensor cores")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_on_a_gpu_a_compiled_network_gives_the_module_s_logits(mode: str) -> None:
    # PyTorch's default lets convolutions round to tf32, further than what is allowed below.
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # pyright: ignore[reportAttributeAccessIssue]
    network = in_order(random_network(model_config("lct_resnet50"), size=64).cuda(), torch.channels_last)
    images = torch.randn(4, 3, 224, 224, device="cuda").to(memory_format=torch.channels_last)
    wanted = network(images)
    torch.compiler.reset()
    compiled = torch.compile(fuse_attention(network), fullgraph=True, mode=mode)
    with torch.no_grad():
        logits = [compiled(images).clone() for _ in range(3)][-1]
    assert (logits - wanted).abs().max() <= 1e-3 * wanted.abs().max()
