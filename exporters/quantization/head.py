"""What stands between the last block and the classifier, as onnxruntime pools it in eight bits."""

from onnx import ModelProto

from exporters.quantization.placement import final_pool
from exporters.quantization.rewrite import initializers, node_like, rewritten


def pool_by_operator(model: ModelProto) -> ModelProto:
    """The same function with the last mean as GlobalAveragePool, of which onnxruntime has an integer kernel.

    A ReduceMean would have it transpose the last block's output, and write it in float. A graph that
    ends otherwise stays as it is.
    """
    mean = final_pool(model.graph)
    if mean is None or mean.op_type != "ReduceMean":
        return model
    axes = initializers(model).get(mean.input[1])
    if axes is None or sorted(axis % 4 for axis in axes) != [2, 3]:
        return model
    pooled = f"{mean.output[0]}_pooled"
    pool = node_like(mean, "GlobalAveragePool", [mean.input[0]], pooled)
    flatten = node_like(mean, "Flatten", [pooled], mean.output[0])
    at = list(model.graph.node).index(mean)
    nodes = [*model.graph.node[:at], pool, flatten, *model.graph.node[at + 1 :]]
    return rewritten(model, nodes, {}, precision="fp32")
