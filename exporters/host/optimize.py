"""onnxruntime's optimised graph for this host, with a fixed batch, as a model to edit."""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnxruntime.tools.onnx_model_utils import make_dim_param_fixed

from exporters.nodes import BATCH


def optimize_for_host(model: ModelProto, *, batch: int) -> ModelProto:
    """`model` as onnxruntime's CPU provider would run it on this machine for `batch` images."""
    fixed = ModelProto()
    fixed.CopyFrom(model)
    make_dim_param_fixed(fixed.graph, BATCH, batch)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "optimized.onnx"
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(path)
        options.log_severity_level = 3  # that the file depends on this machine is the purpose
        onnxruntime.InferenceSession(fixed.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(path)


def nchwc_block() -> int:
    """Channels in a block of onnxruntime's NCHWc layout on this host (8 or 16), or 1 where it has none.

    Seen in what it makes of a convolution with one output channel: its filter is padded to a block.
    """
    weights = numpy_helper.from_array(np.ones((1, 32, 1, 1), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 32, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    optimized = optimize_for_host(model, batch=1)
    return next((tensor.dims[0] for tensor in optimized.graph.initializer if tensor.dims[1:2] == [32]), 1)
