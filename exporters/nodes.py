"""What names an exported graph by: the batch dimension, fused nodes, the PyTorch module of a node."""

from onnx import ModelProto, NodeProto

from exporters.functions import DOMAIN, FUNCTIONS

BATCH = "N"
MODULE_KEY = "lct.module"  # node metadata: the PyTorch module that the node comes from
GATE_KEY = "lct.gate"  # node metadata: the layer whose gate the node gives, in the memory layout of (N, C)


def attention_nodes(model: ModelProto) -> list[NodeProto]:
    """The fused attention nodes, in graph order."""
    return [n for n in model.graph.node if n.domain == DOMAIN and n.op_type in FUNCTIONS]


def node_module(node: NodeProto) -> str:
    """The PyTorch module that a node comes from, or an empty string."""
    return metadata(node, MODULE_KEY)


def metadata(node: NodeProto, key: str) -> str:
    """A node's metadata value, or an empty string."""
    return next((p.value for p in node.metadata_props if p.key == key), "")
