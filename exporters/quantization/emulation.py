"""fp8 graphs for runtimes that round to fp8 and have no other kernels for it, as onnxruntime on CPUs."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto

from exporters.quantization.rewrite import initializers, node_like, rewritten

_SCALING = "scaling"


def compute_in_float(model: ModelProto) -> ModelProto:
    """A copy of an fp8 graph that gives the same logits without kernels for fp8 but the rounding to it.

    onnxruntime makes integer kernels of what stands beside a Q or DQ, whatever its type, and refuses the
    graph that comes of it. So they are spelled as the scaling and the cast that they mean, and weights are
    dequantised beforehand.
    """
    values = initializers(model)
    weights: dict[str, NDArray[Any]] = {}
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            nodes += _quantize(node)
        elif node.op_type != "DequantizeLinear":
            nodes.append(node)
        elif node.input[0] in values:
            weights[node.output[0]] = _dequantized(values[node.input[0]], values[node.input[1]])
        else:
            nodes += _dequantize(node)
    return rewritten(model, nodes, weights, precision="fp8")


def is_scaling(node: NodeProto) -> bool:
    """Whether `node` is the scaling of what was a QuantizeLinear or DequantizeLinear."""
    return node.name.endswith(f"/{_SCALING}")


def _dequantized(values: NDArray[Any], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """`scale` is that of the first axis."""
    return values.astype(np.float32) * scale.reshape(-1, *[1] * (values.ndim - 1))


def _quantize(node: NodeProto) -> tuple[NodeProto, NodeProto]:
    data, scale, _ = node.input
    scaled = f"{node.output[0]}_exact"
    return (
        node_like(node, "Div", [data, scale], scaled, suffix=_SCALING),
        node_like(node, "Cast", [scaled], node.output[0], to=TensorProto.FLOAT8E4M3FN),
    )


def _dequantize(node: NodeProto) -> tuple[NodeProto, NodeProto]:
    data, scale, _ = node.input
    wide = f"{node.output[0]}_unscaled"
    return (
        node_like(node, "Cast", [data], wide, to=TensorProto.FLOAT),
        node_like(node, "Mul", [wide, scale], node.output[0], suffix=_SCALING),
    )
