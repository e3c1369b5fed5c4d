"""The one output of a foreign graph: logits (N, classes), before any softmax."""

import onnx_ir as ir

from exporters.fusions.value_names import reserve
from lct_deploy.errors import ExportError

LOGITS = "logits"
_SOFTMAX = ("Softmax", "LogSoftmax")


def drop_softmax(graph: ir.Graph) -> str | None:
    """Make the logits the output where the graph ends in a softmax over them, and say so in a note."""
    if len(graph.outputs) != 1:
        names = ", ".join(str(value.name) for value in graph.outputs)
        raise ExportError(
            f"the graph has {len(graph.outputs)} outputs ({names}); one, the logits, is expected"
        )
    node = graph.outputs[0].producer()
    if node is None or node.op_type not in _SOFTMAX or node.domain or node.inputs[0] is None:
        return None
    logits = node.inputs[0]
    if logits.shape is None:
        logits.shape = graph.outputs[0].shape
    logits.type = logits.type or graph.outputs[0].type
    graph.outputs[0] = logits
    graph.remove(node, safe=True)
    return f"the {node.op_type} at the end is dropped, logits are what is served: the ranking stays the same"


def adapt_output(graph: ir.Graph) -> int:
    """Name the output `logits`, (N, classes) float32; the number of classes.

    Raises ExportError for any other output.
    """
    value = graph.outputs[0]
    dims = list(value.shape) if value.shape is not None else []
    if len(dims) != 2 or not isinstance(dims[1], int) or value.dtype != ir.DataType.FLOAT:
        dtype = value.dtype.name if value.dtype is not None else "of an unknown type"
        raise ExportError(
            f"the graph's output {value.name!r} is {dtype} {value.shape}; FLOAT (N, classes) is expected"
        )
    reserve(graph, LOGITS, value)
    value.shape = ir.Shape(["N", dims[1]])
    return dims[1]
