"""Stem and stages → ONNX, for images of any height and width."""

from collections.abc import Sequence

from onnx import ModelProto

from exporters.attention import replace_attention
from exporters.graph import ExportedGraph, check_opset, finish, to_onnx
from lct_deploy.architecture import FeatureName
from lct_deploy.manifest import AnySizeInput, FeatureMap
from lct_deploy.models import Backbone
from lct_deploy.models.classifier import ImageBackbone

_TRACED_SIZE = (75, 107)  # of odd sides at every stage; what is traced holds for all


def export_backbone_graph(
    network: Backbone,
    spec: AnySizeInput,
    features: Sequence[FeatureMap],
    *,
    opset: int,
    metadata: dict[str, str],
) -> ExportedGraph:
    """`image` uint8 (N, H, W, 3) → the maps `features`, float32 (N, C, …, …); N, H and W are dynamic.

    Attention, functions, `metadata` and errors are `export_graph`'s.
    """
    check_opset(opset)
    names: tuple[FeatureName, ...] = tuple(feature.name for feature in features)
    replaced = replace_attention(network)
    backbone = ImageBackbone(replaced.network, spec.mean, spec.std, names).eval()
    model = to_onnx(backbone, _TRACED_SIZE, dynamic=(0, 1, 2), outputs=list(names), opset=opset)
    _name_dimensions(model, features)
    return finish(model, network, replaced, opset=opset, metadata=metadata, by_rows=True)


def _name_dimensions(model: ModelProto, features: Sequence[FeatureMap]) -> None:
    """H and W of the image; of c2 H4 and W4, which are ceil(H / 4) and ceil(W / 4)."""
    image = model.graph.input[0].type.tensor_type.shape.dim
    image[1].dim_param, image[2].dim_param = "H", "W"
    for output, feature in zip(model.graph.output, features, strict=True):
        dim = output.type.tensor_type.shape.dim
        dim[2].dim_param, dim[3].dim_param = f"H{feature.stride}", f"W{feature.stride}"
