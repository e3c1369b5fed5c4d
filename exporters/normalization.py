"""Normalisation within groups of channels, equations (2)-(4), in three spellings of one arithmetic."""

from typing import Literal

import numpy as np

from exporters.editing import GraphEditor
from exporters.sites import Attention, Floats

# TensorRT writes a mean of up to four values out as additions and fuses them into the kernel that scales
# X, which computes them anew for every element: see docs/decisions/0010 for what that costs and saves.
_FEW = 4
_MOST = 32

Spelling = Literal["whole", "apart", "nested"]


def normalized(
    editor: GraphEditor,
    attention: Attention,
    z: str,
    output: str,
    *,
    affine: tuple[Floats, ...] | None = None,
    spelling: Spelling = "whole",
) -> str:
    """Collect the nodes from a context `z` of N·C values to `output`: ẑ, or w ⊙ ẑ + b with `affine` (w, b).

    One LayerNormalization over the m channels of a group, whose affine may have the shape (G, m): most
    runtimes compute it stably in one kernel. `apart` the affine follows it, for those that take no such
    shape. `nested`, and m a product of few small numbers, it is means of at most four values each. `output`
    has the shape (N, G, …), in the memory layout of (N, C).
    """
    groups = attention.groups or 1
    width = attention.channels // groups
    factors = small_factors(width) if spelling == "nested" else None
    shape = factors or [width]
    view = editor.reshaped(z, [-1, groups, *shape])
    if affine is None:
        return _standardized(editor, view, factors, width, attention.epsilon, output)
    w, b = (
        editor.constant(f"{output}.{key}", values.reshape(groups, *shape))
        for key, values in zip("wb", affine, strict=True)
    )
    if factors is None and spelling != "apart":
        return editor.node("LayerNormalization", [view, w, b], output, axis=-1, epsilon=attention.epsilon)
    standard = _standardized(editor, view, factors, width, attention.epsilon, f"{output}.zn")
    return editor.node("Add", [editor.node("Mul", [standard, w], f"{output}.scaled"), b], output)


def small_factors(width: int) -> list[int] | None:
    """Factors of at most four whose product is `width`; None where it has none, or is too large."""
    factors: list[int] = []
    while width > _FEW:
        factor = next((k for k in range(_FEW, 1, -1) if width % k == 0), None)
        if factor is None or width > _MOST:
            return None
        factors.insert(0, factor)
        width //= factor
    return [width, *factors]


def _standardized(
    editor: GraphEditor, view: str, factors: list[int] | None, width: int, epsilon: float, output: str
) -> str:
    """(view - mean) / sqrt(variance + ε) over a group: one node, or by `factors` as the definition has it."""
    if factors is None:
        ones = editor.constant(f"{output}.ones", np.ones(width, np.float32))
        return editor.node("LayerNormalization", [view, ones], output, axis=-1, epsilon=epsilon)
    axes = len(factors)
    centred = editor.node("Sub", [view, _mean(editor, view, axes)], f"{output}.centred")
    squared = editor.node("Mul", [centred, centred], f"{output}.squared")
    floor = editor.constant(f"{output}.epsilon", np.array(epsilon, np.float32))
    shifted = editor.node("Add", [_mean(editor, squared, axes), floor], f"{output}.shifted")
    deviation = editor.node("Sqrt", [shifted], f"{output}.deviation")
    return editor.node("Div", [centred, deviation], output)


def _mean(editor: GraphEditor, view: str, axes: int) -> str:
    """The mean over the last `axes`, one of them at a time."""
    mean = view
    for axis in range(-1, -1 - axes, -1):
        name = f"axis_{-axis}_from_last"
        if name not in editor.constants:
            editor.constant(name, np.array([axis], np.int64))
        mean = editor.node("ReduceMean", [mean, name], f"{view}.mean{-axis}", keepdims=1)
    return mean
