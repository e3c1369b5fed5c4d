"""The one input of a foreign graph: what it takes, and in front of it what makes it take `image`."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from exporters.fusions.value_names import register_constant, reserve
from lct_deploy.errors import ExportError, UsageError
from lct_deploy.preprocessing import Rgb

Normalization = tuple[Rgb, Rgb]  # mean and std for pixels in [0, 1]

IMAGE = "image"


@dataclass(frozen=True, kw_only=True)
class GraphInput:
    """float32 (N, 3, H, W) of normalised pixels, or uint8 (N, H, W, 3); batch None is dynamic."""

    name: str
    kind: Literal["float NCHW", "uint8 NHWC"]
    batch: int | None
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int, int]:
        sides = (self.height, self.width)
        return (3, *sides) if self.kind == "float NCHW" else (*sides, 3)

    def feed(self, images: NDArray[np.uint8], normalization: Normalization | None) -> NDArray[np.generic]:
        """What the graph as it came takes for images (N, H, W, 3)."""
        if self.kind == "uint8 NHWC" or normalization is None:
            return images
        mean, std = normalization
        pixels = images.astype(np.float32) / np.float32(255)
        normalised = (pixels - np.array(mean, np.float32)) / np.array(std, np.float32)
        return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2))


def read_input(graph: ir.Graph, image_size: int | None) -> GraphInput:
    """Raises ExportError for a graph that does not take one batch of RGB images of one size."""
    if len(graph.inputs) != 1:
        names = ", ".join(str(value.name) for value in graph.inputs)
        raise ExportError(f"the graph has {len(graph.inputs)} inputs ({names}); one, the images, is expected")
    value = graph.inputs[0]
    dims = [d if isinstance(d, int) else None for d in value.shape] if value.shape is not None else []
    kind = _kind(value, dims)
    sides = dims[2:] if kind == "float NCHW" else dims[1:3]
    height, width = _sides(sides, image_size)
    return GraphInput(name=value.name or "", kind=kind, batch=dims[0], height=height, width=width)


def _kind(value: ir.Value, dims: list[int | None]) -> Literal["float NCHW", "uint8 NHWC"]:
    if len(dims) == 4 and value.dtype == ir.DataType.FLOAT and dims[1] == 3:
        return "float NCHW"
    if len(dims) == 4 and value.dtype == ir.DataType.UINT8 and dims[3] == 3:
        return "uint8 NHWC"
    dtype = value.dtype.name if value.dtype is not None else "an unknown type"
    raise ExportError(
        f"the graph's input {value.name!r} is {dtype} {value.shape}; "
        "FLOAT (N, 3, H, W) or UINT8 (N, H, W, 3) is expected",
        hint="export the float32 network for RGB images, channels first",
    )


def _sides(sides: list[int | None], image_size: int | None) -> tuple[int, int]:
    known = [image_size if side is None else side for side in sides]
    height, width = (0 if side is None else side for side in known)
    if None in known:
        raise UsageError("the graph takes images of any size", hint="say for which with --image-size")
    if height != width:
        raise ExportError(f"the graph takes images of {height}×{width} pixels; only square ones are served")
    if image_size not in (None, height):
        raise UsageError(
            f"--image-size {image_size} contradicts the graph, which takes {height}×{width}",
            hint="drop --image-size, or export the graph for that size",
        )
    return height, width


def adapt_input(graph: ir.Graph, source: GraphInput, normalization: Normalization | None) -> None:
    """`image`, uint8 (N, H, W, 3), in place of the graph's own input; scaling, mean and std inside."""
    old = graph.inputs[0]
    image = ir.Value(
        name=IMAGE,
        type=ir.TensorType(ir.DataType.UINT8),
        shape=ir.Shape(["N", source.height, source.width, 3]),
    )
    if source.kind == "uint8 NHWC" or normalization is None:
        reserve(graph, IMAGE, old)
        old.shape = image.shape
        return
    reserve(graph, IMAGE, image)
    graph.inputs[0] = image
    nodes, result = _normalization(graph, image, normalization)
    first = next(iter(graph))
    graph.insert_before(first, nodes)
    result.name = f"{IMAGE}/normalised"
    result.type, result.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["N", *source.shape])
    ir.convenience.replace_all_uses_with(old, result)


def _normalization(
    graph: ir.Graph, image: ir.Value, normalization: Normalization
) -> tuple[list[ir.Node], ir.Value]:
    """(image / 255 − mean) / std, channels first: operation by operation as the training code has it."""
    mean, std = normalization
    nodes = [ir.node("Transpose", [image], {"perm": [0, 3, 1, 2]}, name=f"{IMAGE}/Transpose")]
    nodes.append(
        ir.node("Cast", [nodes[-1].outputs[0]], {"to": int(ir.DataType.FLOAT)}, name=f"{IMAGE}/Cast")
    )
    for op, name, values in (("Div", "scale", (255.0,)), ("Sub", "mean", mean), ("Div", "std", std)):
        array = np.array(values, np.float32).reshape(1, -1, 1, 1)
        constant = register_constant(graph, f"{IMAGE}/{name}", array)
        nodes.append(ir.node(op, [nodes[-1].outputs[0], constant], name=f"{IMAGE}/{name}"))
    for node in nodes:
        node.outputs[0].name = f"{node.name}_output"
    return nodes, nodes[-1].outputs[0]
