"""The gates of a graph, read through a copy of it that has them as outputs."""

from collections.abc import Callable
from io import BytesIO
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
from lct_deploy.runtime.base import available_cores

Run = Callable[[NDArray[np.uint8]], list[Any]]


def read_gates(
    path: Path, images: NDArray[np.uint8], *, batch: int, runtime: str = "onnxruntime"
) -> dict[str, NDArray[np.float32]]:
    """Gates (N, C) by PyTorch layer for images (N, H, W, 3); empty for a graph without attention."""
    model = onnx.load(path)
    outputs = expose_gates(model)
    if not outputs:
        return {}
    run = (_openvino if runtime == "openvino" else _onnxruntime)(model, list(outputs.values()))
    gates = in_batches(run, images, batch)
    return {
        layer: gate.reshape(len(images), -1)  # of shape (N, C), (N, G, m) or (N, C, 1, 1)
        for layer, gate in zip(outputs, gates, strict=True)
    }


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


def _openvino(model: ModelProto, names: list[str]) -> Run:
    from lct_deploy.runtime.openvino import compile_graph, read_graph

    graph, compiled = read_graph(BytesIO(model.SerializeToString())), dict[int, Any]()

    def run(chunk: NDArray[np.uint8]) -> list[Any]:
        batch = len(chunk)
        if batch not in compiled:
            compiled[batch] = compile_graph(graph, batch, threads=available_cores())
        answers = compiled[batch]({"image": chunk})
        return [answers[name] for name in names]

    return run


def _onnxruntime(model: ModelProto, names: list[str]) -> Run:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if library := op_library():
        options.register_custom_ops_library(str(library))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda chunk: cast("list[Any]", session.run(names, {"image": chunk}))
