"""The gates of a graph, read through a copy of it that has them as outputs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from exporters.functions import DOMAIN
from exporters.nodes import GATE_KEY, attention_nodes, metadata, node_module
from lct_deploy.kernels.cpu import op_library
from lct_deploy.parity import in_batches


def read_gates(path: Path, images: NDArray[np.uint8], *, batch: int) -> dict[str, NDArray[np.float32]]:
    """Gates (N, C) by PyTorch layer for images (N, H, W, 3); empty for a graph without attention."""
    reader = GateReader(path)
    return reader.named(in_batches(reader.run, images, batch)) if reader.layers else {}


class GateReader:
    """The graph at `path`, asked for its gates alone; `layers` are those that have one, in its order."""

    def __init__(self, path: Path) -> None:
        model = onnx.load(path)
        outputs = expose_gates(model)
        self.layers, self._names = list(outputs), list(outputs.values())
        self._session = _session(model)

    def run(self, images: NDArray[np.uint8]) -> list[Any]:
        """The gates as the graph has them: of shape (N, C), (N, G, m) or (N, C, 1, 1)."""
        return cast("list[Any]", self._session.run(self._names, {"image": images}))

    def named(self, gates: Sequence[NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """What `run` gives as (N, C) by layer."""
        return {layer: gate.reshape(len(gate), -1) for layer, gate in zip(self.layers, gates, strict=True)}


def expose_gates(model: ModelProto) -> dict[str, str]:
    """Make every gate an output of the graph, in place; returns the outputs' names by layer.

    A fused function gets its gate as a second output, an operator of our library has one to offer, and
    where the gate is spelled out its node says so (`lct.gate`).
    """
    outputs = _function_gates(model)
    for node in model.graph.node:
        if layer := metadata(node, GATE_KEY):
            if node.domain == DOMAIN:
                node.output.append(f"{layer}.gate")
            outputs[layer] = node.output[-1]
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs.values()
    )
    return outputs


def _function_gates(model: ModelProto) -> dict[str, str]:
    for function in model.functions:
        function.output.append("gate")
    fused = attention_nodes(model)
    for index, node in enumerate(fused):
        node.output.append(f"gate_{index}")
    return {node_module(node): node.output[1] for node in fused}


def _session(model: ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if library := op_library():
        options.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
