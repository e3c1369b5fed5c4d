"""Mean and std of a graph that normalises its images itself, read from what it makes of flat ones."""

import numpy as np
import onnx_ir as ir

from exporters.fusions.graph_input import Normalization
from exporters.fusions.parameters import shortest_float32
from exporters.fusions.region import Declined, Part, sample_shape
from lct_deploy.preprocessing import Rgb


def read_normalization(graph: ir.Graph) -> Normalization | None:
    """Mean and std for pixels in [0, 1]; None where what precedes the first Conv is something else."""
    first = next((node for node in graph if node.op_type == "Conv"), None)
    if first is None or first.inputs[0] is None:
        return None
    image, normalised = graph.inputs[0], first.inputs[0]
    height, width, _ = sample_shape(image) or (0, 0, 0)
    if sample_shape(normalised) != (3, height, width):
        return None
    images = np.zeros((4, height, width, 3))
    for channel in range(3):
        images[1 + channel, :, :, channel] = 255.0
    try:
        values = Part(image, normalised)(images.reshape(4, -1)).reshape(4, 3, -1)
    except Declined:
        return None
    black = values[0, :, 0]
    steps = np.stack([values[1 + channel, :, 0] - black for channel in range(3)])
    flat = np.allclose(values, values[:, :, :1]) and np.allclose(steps, np.diag(np.diag(steps)))
    if not flat or not np.isfinite(values).all() or (np.diag(steps) <= 0).any():
        return None
    std = 1 / np.diag(steps)
    return _rgb(-black * std), _rgb(std)


def _rgb(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Rgb:
    red, green, blue = (shortest_float32(value) for value in values)
    return red, green, blue
