"""`lct::attention_tail` for PyTorch: Y = ReLU(X·σ(w⊙ẑ+b) + identity), in eager mode and torch.compile.

On CUDA the Triton kernel, elsewhere PyTorch's own operators. Both compute in float32, or more where X has
more, and round Y once: in 16 bits that is nearer to the equations than the module, which rounds the gate,
the product and the sum. The gradient is given in closed form, so that networks train with it.
"""

from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor

from lct_deploy.architecture import check_groups, legal_groups
from lct_deploy.errors import RuntimeUnavailableError, UsageError
from lct_deploy.kernels.gpu.plan import plan
from lct_deploy.kernels.gpu.spec import ElementType, KernelSpec
from lct_deploy.models import LinearContextTransform, ResNet
from lct_deploy.models.lct import global_context
from lct_deploy.models.resnet import ResidualBlock

_ELEMENT_TYPES: dict[torch.dtype, ElementType] = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
}


def fuse_attention(network: ResNet) -> ResNet:
    """Let every block of an LCT network end in the operator; the same network, its weights untouched.

    Raises UsageError where a block has another attention, or one that leaves equations out.
    """
    blocks = {name: m for name, m in network.named_modules() if isinstance(m, ResidualBlock)}
    for name, block in blocks.items():
        attention = block.attn
        if not (
            isinstance(attention, LinearContextTransform) and attention.normalize and attention.transform
        ):
            raise UsageError(f"{name}.attn is not the whole Linear Context Transform: {attention}")
    for block in blocks.values():
        block.tail = MethodType(_fused_tail, block)
    return network


def _fused_tail(block: ResidualBlock, branch: Tensor, x: Tensor) -> Tensor:
    attention = cast("LinearContextTransform", block.attn)
    identity, w, b = block.downsample(x), attention.w, attention.b
    return attention_tail(branch, identity, w, b, attention.groups, attention.epsilon, True)


@torch.library.custom_op("lct::attention_tail", mutates_args=())
def attention_tail(
    x: Tensor, identity: Tensor | None, w: Tensor, b: Tensor, groups: int, epsilon: float, relu: bool
) -> Tensor:
    """Y of x (N, C, H, W), `identity` of its shape and type or None, w and b (C,); in x's type.

    Y is in channels_last where x is, else contiguous. Raises UsageError for tensors that do not belong
    together, ArchitectureError for groups that do not fit the channels.
    """
    _check(x, identity, w, b, groups)
    wide = _widened(x)
    normalized, _ = _normalize(x, groups, epsilon)
    result = x.to(wide) * _gate(normalized, w, b)[:, :, None, None]
    if identity is not None:
        result = result + identity.to(wide)
    result = torch.relu(result) if relu else result
    return result.to(x.dtype).contiguous(memory_format=_memory_format(x))


def _fake(
    x: Tensor, identity: Tensor | None, w: Tensor, b: Tensor, groups: int, epsilon: float, relu: bool
) -> Tensor:
    del epsilon, relu
    _check(x, identity, w, b, groups)
    return torch.empty_like(x, memory_format=_memory_format(x))


def _cuda(
    x: Tensor, identity: Tensor | None, w: Tensor, b: Tensor, groups: int, epsilon: float, relu: bool
) -> Tensor:
    _check(x, identity, w, b, groups)
    order = _memory_format(x)
    y = torch.empty_like(x, memory_format=order)
    if not y.numel():
        return y
    spec = KernelSpec(
        channels=x.shape[1],
        pixels=x.shape[2] * x.shape[3],
        groups=groups,
        dtype=_element_type(x),
        layout="nhwc" if order == torch.channels_last else "nchw",
        residual=identity is not None,
        relu=relu,
        epsilon=epsilon,
    )
    tensors = {"x": x.contiguous(memory_format=order), "w": w.contiguous(), "b": b.contiguous(), "y": y}
    if identity is not None:
        tensors["identity"] = identity.contiguous(memory_format=order)
    _launch(spec, tensors)
    return y


def _launch(spec: KernelSpec, tensors: dict[str, Tensor]) -> None:
    try:
        from lct_deploy.kernels.gpu.attention import run
    except ModuleNotFoundError as error:
        raise RuntimeUnavailableError(
            f"the attention kernel needs the package {error.name}", hint="pip install 'lct-deploy[kernel]'"
        ) from error
    y = tensors["y"]
    floats = y.shape[0] * plan(spec).workspace_bytes_per_sample(spec) // 4
    partials = y.new_empty(floats, dtype=torch.float32)
    with torch.cuda.device_of(y):
        run(spec, y.shape[0], {**tensors, "partials": partials})


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, _, w, b, ctx.groups, ctx.epsilon, relu = inputs
    ctx.save_for_backward(x, w, b, output if relu else None)


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Of x, identity, w and b.

    With s = σ(a): ∂a = s(1−s)·Σ_HW ∂Y·X, ∂w = Σ_N ∂a·ẑ, ∂b = Σ_N ∂a, and through (2) and (3)
    ∂z = (∂ẑ − mean_g ∂ẑ − ẑ·mean_g(∂ẑ·ẑ)) / sqrt(var_g + ε) with ∂ẑ = ∂a·w; ∂X = ∂Y·s + ∂z/HW.
    """
    x, w, b, y = ctx.saved_tensors
    wide = _widened(x)
    if y is not None:
        gradient = torch.where(y > 0, gradient, 0)
    normalized, deviation = _normalize(x, ctx.groups, ctx.epsilon)
    gate = _gate(normalized, w, b)
    of_gate = (gradient.to(wide) * x.to(wide)).sum(dim=(2, 3))
    of_a = of_gate * gate * (1 - gate)
    of_normalized = _grouped(of_a * w.to(wide), ctx.groups)
    grouped = _grouped(normalized, ctx.groups)
    along = (of_normalized * grouped).mean(dim=2, keepdim=True)
    of_context = (of_normalized - of_normalized.mean(dim=2, keepdim=True) - grouped * along) / deviation
    of_mean = of_context.flatten(1)[:, :, None, None] / (x.shape[2] * x.shape[3])
    of_x = gradient.to(wide) * gate[:, :, None, None] + of_mean
    of_w, of_b = (of_a * normalized).sum(dim=0), of_a.sum(dim=0)
    of_identity = gradient if ctx.needs_input_grad[1] else None
    return of_x.to(x.dtype), of_identity, of_w.to(w.dtype), of_b.to(b.dtype), None, None, None


attention_tail.register_fake(_fake)
attention_tail.register_kernel("cuda")(_cuda)
attention_tail.register_autograd(_gradients, setup_context=_remember)


def _normalize(x: Tensor, groups: int, epsilon: float) -> tuple[Tensor, Tensor]:
    """Equations (2) and (3): ẑ of shape (N, C), and sqrt(var_g + ε) of shape (N, G, 1)."""
    z = _grouped(global_context(x), groups)
    centred = z - z.mean(dim=2, keepdim=True)
    deviation = torch.sqrt(centred.square().mean(dim=2, keepdim=True) + epsilon)
    return (centred / deviation).flatten(1), deviation


def _gate(normalized: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return torch.sigmoid(w.to(normalized.dtype) * normalized + b.to(normalized.dtype))


def _grouped(z: Tensor, groups: int) -> Tensor:
    return z.unflatten(1, (groups, -1))


def _widened(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _memory_format(x: Tensor) -> torch.memory_format:
    """Which of the two orders Y gets; a tensor that is in both counts as contiguous."""
    if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    return torch.channels_last


def _element_type(x: Tensor) -> ElementType:
    if x.dtype not in _ELEMENT_TYPES:
        known = ", ".join(map(str, _ELEMENT_TYPES))
        raise UsageError(f"the attention kernel has no {x.dtype} on {x.device}", hint=f"it has {known}")
    return _ELEMENT_TYPES[x.dtype]


def _check(x: Tensor, identity: Tensor | None, w: Tensor, b: Tensor, groups: int) -> None:
    if x.dim() != 4 or not x.is_floating_point():
        raise UsageError(f"x must be a floating-point (N, C, H, W), not {x.dtype} {tuple(x.shape)}")
    if identity is not None and (identity.shape, identity.dtype) != (x.shape, x.dtype):
        described = f"{identity.dtype} {tuple(identity.shape)}"
        raise UsageError(f"identity must be like x, {x.dtype} {tuple(x.shape)}, not {described}")
    channels = x.shape[1]
    for name, vector in (("w", w), ("b", b)):
        if vector.shape != (channels,):
            raise UsageError(f"{name} must have the shape ({channels},), not {tuple(vector.shape)}")
    if any(t.device != x.device for t in (identity, w, b) if t is not None):
        raise UsageError(f"x is on {x.device}, and so must be identity, w and b")
    check_groups(groups, channels, layer="lct::attention_tail", legal=legal_groups((channels,)))
