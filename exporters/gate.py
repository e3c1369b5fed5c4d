"""The gate in standard operators, from a context that is already pooled."""

import numpy as np

from exporters.editing import GraphEditor
from exporters.nodes import GATE_KEY
from exporters.sites import Attention


def gate_nodes(editor: GraphEditor, attention: Attention, z: str, *, name: str) -> str:
    """Collect the nodes from a context `z` in float32, (N, C) or (N, C, 1, 1), to its gate `name`.

    Equations (2)-(4). Normalisation within groups is LayerNormalization over m, which every runtime
    computes stably in one kernel; its affine is w and b themselves, of shape (G, m). The gate of LCT
    keeps that shape, (N, G, m); that of SE is (N, C): both have the memory layout of (N, C).
    """
    a = _transformed(editor, attention, z, name) if attention.is_lct else _excited(editor, attention, z, name)
    return editor.node("Sigmoid", [a], name, metadata={GATE_KEY: attention.layer})


def _transformed(editor: GraphEditor, attention: Attention, z: str, name: str) -> str:
    """Equations (2)-(4) in one node."""
    view, groups = _grouped(editor, attention, z, name)
    w, b = (parameter.reshape(groups, -1) for parameter in attention.parameters)
    scale, bias = editor.constant(f"{name}.w", w), editor.constant(f"{name}.b", b)
    return editor.node(
        "LayerNormalization", [view, scale, bias], f"{name}.a", axis=-1, epsilon=attention.epsilon
    )


def _excited(editor: GraphEditor, attention: Attention, z: str, name: str) -> str:
    """Equation (1): W2 ReLU(W1 context), both with biases; SE+ normalises the context first."""
    w1, b1, w2, b2 = (
        editor.constant(f"{name}.{key}", values)
        for key, values in zip(("w1", "b1", "w2", "b2"), attention.parameters, strict=True)
    )
    context = z
    if attention.groups is not None:
        view, groups = _grouped(editor, attention, z, name)
        unit = editor.constant(f"{name}.unit", np.ones(attention.channels // groups, np.float32))
        context = editor.node(
            "LayerNormalization", [view, unit], f"{name}.zn", axis=-1, epsilon=attention.epsilon
        )
    rows = editor.reshaped(context, [-1, attention.channels])
    hidden = editor.node("Gemm", [rows, w1, b1], f"{name}.hidden", transB=1)
    rectified = editor.node("Relu", [hidden], f"{name}.rectified")
    return editor.node("Gemm", [rectified, w2, b2], f"{name}.a", transB=1)


def _grouped(editor: GraphEditor, attention: Attention, z: str, name: str) -> tuple[str, int]:
    """`z` as (N, G, m), and G."""
    groups = attention.groups or 1
    return editor.reshaped(z, [-1, groups, attention.channels // groups]), groups
