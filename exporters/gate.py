"""The gate in standard operators, from a context that is already pooled."""

import numpy as np

from exporters.editing import GraphEditor
from exporters.nodes import GATE_KEY
from exporters.normalization import Spelling, normalized
from exporters.sites import Attention


def gate_nodes(
    editor: GraphEditor, attention: Attention, z: str, *, name: str, spelling: Spelling = "instances"
) -> str:
    """Collect the nodes from a context `z` in float32, (N, C) or (N, C, 1, 1), to its gate `name`.

    Equations (2)-(4); `spelling` is that of `normalized`. The gate has the memory
    layout of (N, C), and for LCT a shape that splits C further.
    """
    a = (
        normalized(editor, attention, z, f"{name}.a", affine=attention.parameters, spelling=spelling)
        if attention.is_lct
        else _excited(editor, attention, z, name, spelling=spelling)
    )
    return editor.node("Sigmoid", [a], name, metadata={GATE_KEY: attention.layer})


def _excited(editor: GraphEditor, attention: Attention, z: str, name: str, *, spelling: Spelling) -> str:
    """Equation (1): W2 ReLU(W1 context), both with biases; SE+ normalises the context first."""
    w1, b1, w2, b2 = (
        editor.constant(f"{name}.{key}", np.asarray(values))
        for key, values in zip(("w1", "b1", "w2", "b2"), attention.parameters, strict=True)
    )
    context = z
    if attention.groups is not None:
        context = normalized(editor, attention, z, f"{name}.zn", spelling=spelling)
    rows = editor.reshaped(context, [-1, attention.channels])
    hidden = editor.node("Gemm", [rows, w1, b1], f"{name}.hidden", transB=1)
    rectified = editor.node("Relu", [hidden], f"{name}.rectified")
    return editor.node("Gemm", [rectified, w2, b2], f"{name}.a", transB=1)
