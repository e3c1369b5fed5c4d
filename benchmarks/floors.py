"""The least that a network's convolutions cost on this machine: their arithmetic at the best rate seen.

A rate is that of one convolution of ResNet-50, several in a row, in the kernels of onnxruntime (MLAS) and
of PyTorch (oneDNN). The floor of a network is its operations over the best rate; no claim that it is the
processor's limit, only that somebody's kernels get there.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from lct_deploy.manifest import Precision

Floats = NDArray[np.float32]

DEPTH = 6  # in a row: what stands before and after them is then little


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """From `channels` to as many, on `size` x `size` pixels, stride 1, padded."""

    channels: int
    size: int
    kernel: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.channels, self.channels, self.kernel, self.kernel

    def __str__(self) -> str:
        return f"{self.kernel}x{self.kernel} of {self.channels} channels at {self.size} pixels"


CONVOLUTIONS = (
    Convolution(channels=64, size=56, kernel=3),
    Convolution(channels=128, size=28, kernel=3),
    Convolution(channels=256, size=14, kernel=3),
    Convolution(channels=512, size=28, kernel=1),
)


@dataclass(frozen=True, kw_only=True)
class Floor:
    """Something to time; `operations` are the multiplications and additions of one run."""

    name: str
    run: Callable[[], object]
    operations: int


def floors(precision: Precision, batch: int, threads: int) -> Iterator[Floor]:
    """Every convolution in every library, for `batch` images; torch runs on the threads it was given."""
    for convolution in CONVOLUTIONS:
        operations = DEPTH * 2 * batch * int(np.prod(convolution.shape)) * convolution.size**2
        for library, prepare in _LIBRARIES.items():
            run = prepare(convolution, precision, batch, threads)
            yield Floor(name=f"{library} {convolution}", run=run, operations=operations)


def network_operations(model: ModelProto) -> int:
    """Multiplications and additions of the convolutions and the classifier for one image."""
    return sum(node_operations(model).values())


def node_operations(model: ModelProto) -> dict[str, int]:
    """The same, of each by the name of its node."""
    weights = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    shapes = {value.name: value.type.tensor_type.shape.dim for value in model.graph.value_info}
    sources = {node.output[0]: node.input[0] for node in model.graph.node}
    found: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            pixels = [dim.dim_value for dim in shapes[node.output[0]][2:]] if node.op_type == "Conv" else [1]
            weight = node.input[1]
            while weight not in weights:  # through the DequantizeLinear of quantised ones
                weight = sources[weight]
            found[node.name] = 2 * int(np.prod(weights[weight])) * int(np.prod(pixels))
    return found


def _onnxruntime(
    convolution: Convolution, precision: Precision, batch: int, threads: int
) -> Callable[[], object]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    model = _stack(convolution, precision, batch)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    x = _values(convolution, batch)
    feed = {"x0": x if precision == "fp32" else np.clip(128 + 40 * x, 0, 255).astype(np.uint8)}

    def run() -> object:
        return session.run(None, feed)

    return run


def _stack(convolution: Convolution, precision: Precision, batch: int) -> ModelProto:
    names = [f"x{i}" for i in range(DEPTH + 1)]
    pads = [convolution.kernel // 2] * 4
    dtype = TensorProto.FLOAT if precision == "fp32" else TensorProto.UINT8
    size = [batch, convolution.channels, convolution.size, convolution.size]
    weight = _weights(convolution)
    constants = {"w": weight}
    op, operands = "Conv", ["w"]
    if precision == "int8":
        scales = {name: np.array(1 / 40, np.float32) for name in ("s", "t")}
        constants = {
            "w": _integers(weight),
            "z": np.array(128, np.uint8),
            "n": np.array(0, np.int8),
            **scales,
        }
        constants["v"] = np.array(np.abs(weight).max() / 127, np.float32)
        op, operands = "QLinearConv", ["s", "z", "w", "v", "n", "t", "z"]
    graph = helper.make_graph(
        [helper.make_node(op, [x, *operands], [y], pads=pads) for x, y in pairwise(names)],
        "stack",
        [helper.make_tensor_value_info(names[0], dtype, size)],
        [helper.make_tensor_value_info(names[-1], dtype, size)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _torch(convolution: Convolution, precision: Precision, batch: int, threads: int) -> Callable[[], object]:
    del threads  # torch.set_num_threads is the process's
    weight, x = torch.from_numpy(_weights(convolution)), torch.from_numpy(_values(convolution, batch))
    return _one_dnn(weight, x) if precision == "fp32" else _one_dnn_int8(weight, x)


def _one_dnn(weight: torch.Tensor, x: torch.Tensor) -> Callable[[], object]:
    """Weights and tensors in oneDNN's own layouts."""
    with warnings.catch_warnings(action="ignore"):  # of what torch's own module deprecates
        from torch.utils import mkldnn
    outputs, inputs, kernel, _ = weight.shape
    layers = [torch.nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False) for _ in range(DEPTH)]
    for layer in layers:
        layer.weight.data.copy_(weight)
    network = mkldnn.to_mkldnn(torch.nn.Sequential(*layers).eval())
    blocked = x.to_mkldnn()

    def run() -> object:
        with torch.inference_mode():
            return network(blocked)

    return run


def _one_dnn_int8(weight: torch.Tensor, x: torch.Tensor) -> Callable[[], object]:
    torch.backends.quantized.engine = "onednn"
    scale, pad = float(weight.abs().max()) / 127, weight.shape[2] // 2
    channels_last = x.contiguous(memory_format=torch.channels_last)
    with warnings.catch_warnings(action="ignore"):  # of a deprecation: it is the one way to these kernels
        integers = torch.quantize_per_tensor(weight, scale, 0, torch.qint8)
        source = torch.quantize_per_tensor(channels_last, 1 / 40, 128, torch.quint8)
    packed = torch.ops.quantized.conv2d_prepack(integers, None, [1, 1], [pad, pad], [1, 1], 1)

    def run() -> object:
        with torch.inference_mode():
            y = source
            for _ in range(DEPTH):
                y = torch.ops.quantized.conv2d(y, packed, 1 / 40, 128)
            return y

    return run


def _weights(convolution: Convolution) -> Floats:
    """Such that a convolution keeps the size of its values."""
    _, inputs, height, width = convolution.shape
    rng = np.random.default_rng(0)
    return (rng.normal(size=convolution.shape) / np.sqrt(inputs * height * width)).astype(np.float32)


def _integers(weight: Floats) -> NDArray[np.int8]:
    return np.rint(weight * (127 / np.abs(weight).max())).astype(np.int8)


def _values(convolution: Convolution, batch: int) -> Floats:
    shape = (batch, convolution.channels, convolution.size, convolution.size)
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


_LIBRARIES = {"onnxruntime": _onnxruntime, "oneDNN": _torch}
