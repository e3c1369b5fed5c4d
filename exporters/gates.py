"""The contexts and gates of a graph, read through a copy of it that has them as outputs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper
from onnx.inliner import inline_local_functions

from exporters.editing import GraphEditor
from exporters.functions import DOMAIN
from exporters.nodes import BATCH, GATE_KEY, attention_nodes, metadata, node_module
from exporters.sites import read_attention
from lct_deploy.cores import available_cores
from lct_deploy.kernels.cpu import op_library
from lct_deploy.manifest import CONTEXT_OUTPUT, GATE_OUTPUT
from lct_deploy.parity import in_batches

Run = Callable[[NDArray[np.uint8]], list[Any]]


@dataclass(frozen=True, kw_only=True)
class Exposed:
    """The outputs that give a block's gate and its context; None where the graph does not keep that."""

    gate: str
    context: str | None


def read_gates(
    path: Path, images: NDArray[np.uint8], *, batch: int, runtime: str = "onnxruntime"
) -> dict[str, NDArray[np.float32]]:
    """Gates (N, C) by PyTorch layer for images (N, H, W, 3); empty for a graph without attention."""
    reader = GateReader(path, runtime=runtime)
    return reader.named(in_batches(reader.run, images, batch)) if reader.layers else {}


class GateReader:
    """The graph at `path`, asked for its gates alone; `layers` are those that have one, in its order."""

    def __init__(self, path: Path, *, runtime: str = "onnxruntime") -> None:
        model = onnx.load(path)
        outputs = expose_gates(model)
        names = [exposed.gate for exposed in outputs.values()]
        self.layers = list(outputs)
        self._run = (_openvino if runtime == "openvino" else _onnxruntime)(model, names)

    def run(self, images: NDArray[np.uint8]) -> list[Any]:
        """The gates as the graph has them: of shape (N, C), (N, G, m) or (N, C, 1, 1)."""
        return self._run(images)

    def named(self, gates: Sequence[NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """What `run` gives as (N, C) by layer."""
        return {layer: gate.reshape(len(gate), -1) for layer, gate in zip(self.layers, gates, strict=True)}


def expose_gates(model: ModelProto) -> dict[str, Exposed]:
    """Make every gate an output of the graph, in place, and every context that has a name; by layer.

    A fused function gets both as outputs, an operator of our library has its gate to offer, and where
    the gate is spelled out its node says so (`lct.gate`). A graph by `with_gates` has them already.
    """
    if present := _present(model):
        return present
    outputs = _function_outputs(model)
    for node in model.graph.node:
        if layer := metadata(node, GATE_KEY):
            if node.domain == DOMAIN:
                node.output.append(f"{layer}{GATE_OUTPUT}")
            outputs[layer] = Exposed(gate=node.output[-1], context=None)
    for exposed in outputs.values():
        for name in filter(None, (exposed.context, exposed.gate)):
            model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return outputs


def with_gates(model: ModelProto) -> ModelProto:
    """A copy of a portable graph that also gives each block's context and gate, (N, C) float32.

    All in standard operators: what takes an attention's node over has a single output.
    """
    exposed = ModelProto()
    exposed.CopyFrom(model)
    editor = GraphEditor(exposed)
    channels = {layer: read_attention(editor, node).channels for layer, node in _attention(exposed).items()}
    for layer, names in _function_outputs(exposed).items():
        for name in filter(None, (names.context, names.gate)):
            shape = [BATCH, channels[layer]]
            exposed.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    inlined = inline_local_functions(exposed)
    onnx.checker.check_model(inlined, full_check=True)
    return inlined


def _present(model: ModelProto) -> dict[str, Exposed]:
    layers = [
        output.name.removesuffix(GATE_OUTPUT)
        for output in model.graph.output
        if output.name.endswith(GATE_OUTPUT)
    ]
    return {layer: Exposed(gate=layer + GATE_OUTPUT, context=layer + CONTEXT_OUTPUT) for layer in layers}


def _function_outputs(model: ModelProto) -> dict[str, Exposed]:
    """Give the attention's functions and their nodes two more outputs, in place."""
    for function in model.functions:
        function.output.extend(["gate", "z"])
    fused = _attention(model)
    for layer, node in fused.items():
        node.output.extend([layer + GATE_OUTPUT, layer + CONTEXT_OUTPUT])
    return {layer: Exposed(gate=layer + GATE_OUTPUT, context=layer + CONTEXT_OUTPUT) for layer in fused}


def _attention(model: ModelProto) -> dict[str, NodeProto]:
    return {node_module(node): node for node in attention_nodes(model)}


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
