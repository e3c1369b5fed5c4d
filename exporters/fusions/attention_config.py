"""What the attention nodes of a graph have in common, as a manifest states it."""

from typing import cast

import onnx_ir as ir

from exporters.functions import (
    DOMAIN,
    LINEAR_CONTEXT_TRANSFORM,
    NORMALIZED_SQUEEZE_EXCITATION,
    SQUEEZE_EXCITATION,
)
from exporters.fusions.parameters import shortest_float32
from lct_deploy.architecture import AttentionConfig, AttentionKind

_KINDS: dict[str, AttentionKind] = {
    LINEAR_CONTEXT_TRANSFORM: "lct",
    SQUEEZE_EXCITATION: "se",
    NORMALIZED_SQUEEZE_EXCITATION: "se_plus",
}


def read_attention(graph: ir.Graph) -> AttentionConfig | None:
    """The attention that all blocks share, or None where they differ."""
    configs = [_config(node) for node in graph if node.domain == DOMAIN and node.op_type in _KINDS]
    alike = all(config == configs[0] for config in configs)
    return configs[0] if configs and alike else None


def _config(node: ir.Node) -> AttentionConfig:
    settings: dict[str, object] = {}
    if "groups" in node.attributes:
        settings["groups"] = node.attributes["groups"].as_int()
        settings["epsilon"] = shortest_float32(node.attributes["epsilon"].as_float())
    if (
        node.op_type != LINEAR_CONTEXT_TRANSFORM
        and (w1 := node.inputs[1]) is not None
        and w1.shape is not None
    ):
        hidden, channels = cast("tuple[int, int]", tuple(w1.shape))
        settings["reduction"] = max(1, channels // hidden)
    return AttentionConfig.model_validate({"kind": _KINDS[node.op_type], **settings})
