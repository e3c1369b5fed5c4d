"""Names that a foreign graph may have given away already."""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def register_constant(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    """An initialiser called `name`, or `name_2` where that is taken."""
    unused, number = name, 1
    while unused in graph.initializers:
        number += 1
        unused = f"{name}_{number}"
    tensor = ir.tensor(array)
    value = ir.Value(
        name=unused, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def reserve(graph: ir.Graph, name: str, value: ir.Value) -> None:
    """Give `name` to `value`; whatever else has it is called something else."""
    outputs = [other for node in graph for other in node.outputs]
    for other in (*graph.inputs, *outputs, *list(graph.initializers.values())):
        if other.name == name and other is not value:
            other.name = f"{name}/inner"
    value.name = name
