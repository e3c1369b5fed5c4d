"""Static quantisation in ONNX's Q/DQ form, from which every runtime makes its integer kernels."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from exporters.quantization import numerics
from exporters.quantization.calibration import Calibration
from exporters.quantization.gate import quantize_gates
from exporters.quantization.head import pool_by_operator
from exporters.quantization.numerics import Affine, EightBit
from exporters.quantization.placement import Target, placement
from exporters.quantization.rewrite import copied, initializers, node_like, rewritten, with_opset
from exporters.quantization.stem import cast_first, fold_normalization
from lct_deploy.errors import ExportError

_FP8_OPSET = 19  # the first whose QuantizeLinear has float8 outputs


def quantize(
    model: ModelProto, calibration: Calibration, target: Target, precision: EightBit = "int8"
) -> ModelProto:
    """A copy of an fp32 graph with eight-bit weights per output channel and eight-bit activations.

    Biases give back what rounded weights take from the mean of what they are added to.
    `onnxruntime`: uint8 activations with zero points, int32 biases, the image's bytes read directly.
    `tensorrt`: symmetric int8 or fp8, float biases, as TensorRT takes no other; the stem is in eight
    bits for int8 alone.
    `openvino`: uint8 activations with zero points, float biases, the stem in eight bits.
    Nodes and tensors keep their names: beside a tensor `t` stand
    `t_quantized`, `t_dequantized`, `t_scale` and `t_zero_point`.
    `calibration` may know more tensors than are quantised; raises ExportError where it lacks a range.
    """
    if precision == "fp8":
        model = with_opset(model, _FP8_OPSET)
    source = pool_by_operator(fold_normalization(model)) if target == "onnxruntime" else cast_first(model)
    writer = _Writer(source, calibration, target, precision)
    for node in source.graph.node:
        writer.rewrite(node)
    quantized = rewritten(source, writer.nodes, writer.constants, precision=precision)
    if target == "onnxruntime":
        quantize_gates(quantized)
    return quantized


def _activations(
    model: ModelProto, calibration: Calibration, target: Target, precision: EightBit
) -> dict[str, Affine]:
    places, ranges = placement(model.graph, target, stem=precision != "fp8"), calibration.ranges
    missing = sorted(set(places.values()) - set(ranges))
    if missing:
        raise ExportError(f"no range was calibrated for {len(missing)} tensors: {', '.join(missing[:5])}")
    return {
        tensor: numerics.activation(ranges[source], target, precision) for tensor, source in places.items()
    }


class _Writer:
    """The nodes and new constants of the quantised graph, in order."""

    def __init__(
        self, model: ModelProto, calibration: Calibration, target: Target, precision: EightBit
    ) -> None:
        self.activations = _activations(model, calibration, target, precision)
        self.means = calibration.means
        self.target: Target = target
        self.precision: EightBit = precision
        self.values = initializers(model)
        # The scale of every tensor that eight-bit weights meet, in the tensor's own name.
        self.scales = {name: affine.scale for name, affine in self.activations.items()}
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, NDArray[Any]] = {}

    def rewrite(self, original: NodeProto) -> None:
        """Append a node that reads dequantised tensors, then the Q/DQ of what it computes."""
        node = copied(original)
        if node.op_type == "DequantizeLinear":  # the image's
            self.scales[node.output[0]] = self.values[node.input[1]]
        if node.op_type in ("Conv", "Gemm") and node.input[0] in self.scales:
            self._weights(node)
        for index, name in enumerate(original.input):
            if name in self.activations:
                node.input[index] = f"{name}_dequantized"
        self.nodes.append(node)
        for output in node.output:
            if output in self.activations:
                self._activation(output, node)

    def _activation(self, tensor: str, origin: NodeProto) -> None:
        affine = self.activations[tensor]
        parameters = {f"{tensor}_scale": affine.scale, f"{tensor}_zero_point": affine.zero_point}
        q, dq = f"{tensor}_quantized", f"{tensor}_dequantized"
        self.constants.update(parameters)
        self.nodes.append(node_like(origin, "QuantizeLinear", [tensor, *parameters], q))
        self.nodes.append(node_like(origin, "DequantizeLinear", [q, *parameters], dq))

    def _weights(self, node: NodeProto) -> None:
        """Weights in eight bits with a bias that fits them, for onnxruntime in int32."""
        data, weight, bias = node.input
        scale, values, offset = self.scales[data], self.values[weight], self.values[bias]
        small = numerics.weights(values, offset, scale, self.target, self.precision)
        node.input[1] = self._constant(node, weight, small.values, small.scale, "weight")
        if data in self.means:  # not of an image's bytes
            offset = offset + numerics.lost_mean(values, small, self.means[data])
        if self.target == "onnxruntime":
            integers = numerics.integer_bias(offset, small.scale, scale)
            node.input[2] = self._constant(node, bias, integers, small.scale * scale, "bias")
        else:
            node.input[2] = f"{node.name}/bias"
            self.constants[node.input[2]] = offset

    def _constant(
        self, node: NodeProto, name: str, values: NDArray[Any], scale: NDArray[np.float32], kind: str
    ) -> str:
        inputs = [f"{name}_quantized", f"{name}_scale", f"{name}_zero_point"]
        self.constants.update(zip(inputs, (values, scale, np.zeros(scale.shape, values.dtype)), strict=True))
        suffix, output = f"{kind}/DequantizeLinear", f"{name}_dequantized"
        self.nodes.append(node_like(node, "DequantizeLinear", inputs, output, suffix=suffix, axis=0))
        return output
