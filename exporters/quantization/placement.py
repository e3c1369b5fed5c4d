"""Which tensors of an exported graph are quantised, and whose range each of them has.

    onnxruntime  Conv → Q/DQ → attention → Q/DQ → Add (identity: Q/DQ) → Relu → Q/DQ → Conv …
    tensorrt     Conv → Q/DQ → attention ───────→ Add (identity: Q/DQ) → Relu → Q/DQ → Conv …

onnxruntime fuses an operator with the Q/DQ around it or runs it in float: with all of them it scales
and adds in eight bits. TensorRT fuses what stands between two Q/DQ: without one in between, the scale,
the addition and the ReLU are one kernel; and so are, in a block without attention, the branch's last
convolution, the addition and the ReLU. It has no fp8 kernel for the first convolution's three channels,
and would dequantise the weights at every run: in fp8 that one stays in float, and the pooling behind it.
OpenVINO is as onnxruntime: a tensor that is read in float, too, it writes twice.
"""

from typing import Literal

from onnx import GraphProto, NodeProto

from exporters.functions import DOMAIN

Target = Literal["onnxruntime", "tensorrt", "openvino"]


def placement(graph: GraphProto, target: Target, *, stem: bool = True) -> dict[str, str]:
    """Tensor → the tensor whose range it has, in graph order; for nodes with and without attention.

    Without `stem` the first convolution reads float, and so does the pooling behind it.
    """
    producers = {output: node for node in graph.node for output in node.output}
    wanted = {
        name
        for node in graph.node
        for name in _activations_of(node, graph)
        if not _stays(name, node, producers, target)
    }
    if not stem:
        pooled = {node.input[0] for node in graph.node if node.op_type == "MaxPool"}
        wanted -= {stem_input(graph), *pooled}
    sources: dict[str, str] = {}
    for name, node in producers.items():
        if name in wanted:
            origin = _origin(name, node, graph)
            sources[name] = sources.get(origin, origin)
    return sources


def stem_input(graph: GraphProto) -> str:
    """The tensor that preprocessing hands to the network."""
    return next(node.input[0] for node in graph.node if node.op_type == "Conv")


def final_pool(graph: GraphProto) -> NodeProto | None:
    """The network's own mean, which the last Gemm reads, flattened or not; None where there is none."""
    producers = {output: node for node in graph.node for output in node.output}
    classifier = next((node for node in reversed(graph.node) if node.op_type == "Gemm"), None)
    pool = producers.get(classifier.input[0]) if classifier else None
    if pool is not None and pool.op_type == "Flatten":
        pool = producers.get(pool.input[0])
    return pool if pool is not None and pool.op_type in ("ReduceMean", "GlobalAveragePool") else None


def is_residual(node: NodeProto, graph: GraphProto) -> bool:
    """An addition of two activations; an attention in plain operators adds constants too."""
    return node.op_type == "Add" and not any(tensor.name in node.input for tensor in graph.initializer)


def _activations_of(node: NodeProto, graph: GraphProto) -> list[str]:
    """The inputs of a node that it can read in eight bits."""
    if node.domain == DOMAIN or node.op_type in ("Conv", "MaxPool", "Gemm", "Flatten"):
        return [node.input[0]]
    if is_residual(node, graph):
        return list(node.input)
    return [node.input[0]] if node == final_pool(graph) else []


def _origin(name: str, node: NodeProto, graph: GraphProto) -> str:
    """The tensor whose range that of `name`, which `node` makes, is.

    The largest of eight-bit values is one of them: MaxPool keeps its input's scale. So does Flatten, and
    what is flattened has the range that was measured of the result.
    """
    if node.op_type == "MaxPool":
        return node.input[0]
    flatten = (other for other in graph.node if other.op_type == "Flatten" and other.input[0] == name)
    return next((other.output[0] for other in flatten), name)


def _stays(name: str, reader: NodeProto, producers: dict[str, NodeProto], target: Target) -> bool:
    """Whether a tensor is in eight bits already, or is better left in float for this reader."""
    producer = producers[name]
    if producer.op_type == "DequantizeLinear":
        return True
    branch = producer.domain == DOMAIN or (producer.op_type == "Conv" and name == reader.input[0])
    return target == "tensorrt" and reader.op_type == "Add" and branch
