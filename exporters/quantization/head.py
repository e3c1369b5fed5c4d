"""What stands between the last block and the classifier, as onnxruntime pools it in eight bits."""

from onnx import ModelProto, NodeProto

from exporters.editing import attribute
from exporters.quantization.placement import final_pool
from exporters.quantization.rewrite import initializers, node_like, rewritten


def pool_by_operator(model: ModelProto) -> ModelProto:
    """The same function with the last mean as GlobalAveragePool, of which onnxruntime has an integer kernel.

    A ReduceMean would have it transpose the last block's output, and write it in float. A graph that
    ends otherwise stays as it is.
    """
    mean = final_pool(model.graph)
    if mean is None or mean.op_type != "ReduceMean" or sorted(mean_axes(model, mean)) != [2, 3]:
        return model
    (x, *_), (output,) = mean.input, mean.output
    if attribute(mean, "keepdims", 1):
        pooling = [node_like(mean, "GlobalAveragePool", [x], output)]
    else:
        pooled = f"{output}_pooled"
        pooling = [
            node_like(mean, "GlobalAveragePool", [x], pooled),
            node_like(mean, "Flatten", [pooled], output),
        ]
    at = list(model.graph.node).index(mean)
    nodes = [*model.graph.node[:at], *pooling, *model.graph.node[at + 1 :]]
    return rewritten(model, nodes, {}, precision="fp32")


def mean_axes(model: ModelProto, mean: NodeProto) -> list[int]:
    """What a ReduceMean of a tensor (N, C, H, W) averages over; empty where that is computed.

    An attribute up to opset 17, then an input.
    """
    axes = attribute(mean, "axes", [])
    if len(mean.input) > 1:
        axes = initializers(model).get(mean.input[1], [])
    return [int(axis) % 4 for axis in axes]
