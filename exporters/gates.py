"""The gates of an exported graph, read through a copy of it that has them as outputs."""

from pathlib import Path
from typing import cast

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from exporters.functions import attention_function
from exporters.graph import attention_nodes, node_module


def read_gates(path: Path, images: NDArray[np.uint8], *, batch: int) -> dict[str, NDArray[np.float32]]:
    """Gates (N, C) by PyTorch layer for images (N, H, W, 3); empty for a graph without attention."""
    model = onnx.load(path)
    outputs = expose_gates(model)
    if not outputs:
        return {}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = list(outputs.values())
    batches = [
        cast("list[NDArray[np.float32]]", session.run(names, {"image": images[start : start + batch]}))
        for start in range(0, len(images), batch)
    ]
    return {
        layer: np.concatenate(parts) for layer, parts in zip(outputs, zip(*batches, strict=True), strict=True)
    }


def expose_gates(model: ModelProto) -> dict[str, str]:
    """Give every attention node a second output, its gate, in place; returns output by layer."""
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    functions = [attention_function(function.name, opset, with_gate=True) for function in model.functions]
    del model.functions[:]
    model.functions.extend(functions)
    outputs: dict[str, str] = {}
    for index, node in enumerate(attention_nodes(model)):
        name = f"gate_{index}"
        node.output.append(name)
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
        outputs[node_module(node)] = name
    return outputs
