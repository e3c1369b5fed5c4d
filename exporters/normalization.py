"""Normalisation within groups of channels, equations (2)-(4), in three spellings of one arithmetic."""

from typing import Literal

import numpy as np

from exporters.editing import GraphEditor
from exporters.sites import Attention, Floats

# TensorRT writes a mean of up to four values out as additions and fuses them into the kernel that scales
# X, which computes them anew for every element: see docs/decisions/0010 for what that costs and saves.
_FEW = 4
_MOST = 32

Spelling = Literal["instances", "apart", "nested"]


def normalized(
    editor: GraphEditor,
    attention: Attention,
    z: str,
    output: str,
    *,
    affine: tuple[Floats, ...] | None = None,
    spelling: Spelling,
) -> str:
    """Collect the nodes from a context `z` of N·C values to `output`: ẑ, or w ⊙ ẑ + b with `affine` (w, b).

    `apart`: one LayerNormalization over the m channels of a group, which most runtimes compute stably in one
    kernel, and the affine behind it. `instances`: an InstanceNormalization in its place, which onnxruntime
    computes as stably and on one thread; to a LayerNormalization, however small, it gives all of them, and
    waits for the last. `nested`, and m a product of few small numbers: means of at most four values each;
    of other m a LayerNormalization whose affine has the shape (G, m). `output` has the shape (N, G, …), in
    the memory layout of (N, C).
    """
    groups = attention.groups or 1
    width = attention.channels // groups
    factors = small_factors(width) if spelling == "nested" else None
    shape = factors or [width]
    view = editor.reshaped(z, [-1, groups, *shape])
    if affine is None:
        return _standardized(editor, attention, view, factors, output, spelling)
    w, b = (
        editor.constant(f"{output}.{key}", values.reshape(groups, *shape))
        for key, values in zip("wb", affine, strict=True)
    )
    if factors is None and spelling == "nested":
        return editor.node("LayerNormalization", [view, w, b], output, axis=-1, epsilon=attention.epsilon)
    standard = _standardized(editor, attention, view, factors, f"{output}.zn", spelling)
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
    editor: GraphEditor,
    attention: Attention,
    view: str,
    factors: list[int] | None,
    output: str,
    spelling: Spelling,
) -> str:
    """(view - mean) / sqrt(variance + ε) over a group: one node, or by `factors` as the definition has it."""
    groups, epsilon = attention.groups or 1, attention.epsilon
    if factors is None and spelling == "instances":
        ones = editor.constant(f"{output}.ones", np.ones(groups, np.float32))
        zeros = editor.constant(f"{output}.zeros", np.zeros(groups, np.float32))
        return editor.node("InstanceNormalization", [view, ones, zeros], output, epsilon=epsilon)
    if factors is None:
        ones = editor.constant(f"{output}.ones", np.ones(attention.channels // groups, np.float32))
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
