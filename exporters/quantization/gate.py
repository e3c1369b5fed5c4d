"""The gate in eight bits, as the other factor of an integer multiplication."""

import numpy as np
from onnx import FunctionProto, ModelProto, NodeProto, helper, numpy_helper


def quantize_gates(model: ModelProto) -> None:
    """Let the attention's functions compute Y = X · DQ(Q(gate)), in place.

    The gate itself is computed in float32. Its range is a sigmoid's, (0, 1), whatever the images.
    """
    for function in model.functions:
        nodes = [part for node in function.node for part in _with_rounded_gate(node, function)]
        del function.node[:]
        function.node.extend(nodes)


def _with_rounded_gate(node: NodeProto, function: FunctionProto) -> list[NodeProto]:
    if node.output[0] != function.output[0]:
        return [node]
    x, gate = node.input
    parameters = {"gate_scale": np.float32(1 / 255), "gate_zero_point": np.uint8(0)}
    return [
        *(
            helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(value)))
            for name, value in parameters.items()
        ),
        helper.make_node("QuantizeLinear", [gate, *parameters], ["gate_quantized"]),
        helper.make_node("DequantizeLinear", ["gate_quantized", *parameters], ["gate_dequantized"]),
        helper.make_node("Mul", [x, "gate_dequantized"], list(node.output)),
    ]
