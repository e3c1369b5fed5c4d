"""All attention of a graph: each candidate fused, or listed with the reason why it is not."""

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import common

from exporters.functions import DOMAIN, DOMAIN_VERSION, FUNCTIONS
from exporters.fusions import linear_context_transform, squeeze_excitation
from exporters.fusions.candidates import Candidate, candidates
from exporters.fusions.naming import common_module, module_of
from exporters.fusions.parameters import Fused
from exporters.fusions.precision import cancels
from exporters.fusions.region import Declined, nodes_between
from exporters.fusions.site import Site, locate
from exporters.fusions.value_names import register_constant
from exporters.nodes import MODULE_KEY
from lct_deploy.manifest import FusedBlock, FusionCertificate, Miss


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fused attention: its name, what it is, and where the graph had it.

    `cancels`: the graph's own operators lose the variance of contexts far from zero in float32.
    """

    layer: str
    node: str
    fused: Fused
    site: Site
    cancels: bool


@dataclass(frozen=True, kw_only=True)
class Fusion:
    """What became of a graph's attention; nodes that the graph already had count as fused."""

    blocks: tuple[Block, ...]
    certificate: FusionCertificate


def fuse(model: ir.Model) -> Fusion:
    """Replace attention by nodes of domain `lct`, in place; their functions are the caller's to add.

    The graph needs known shapes (all but the batch) and folded constants.
    """
    graph = model.graph
    blocks: list[Block] = []
    misses: list[Miss] = []
    names = _Names()
    own = [_own_block(node, names) for node in graph if is_attention(node)]
    for candidate in candidates(graph):
        try:
            site = locate(candidate)
            fused = recognise(site) if site else None
        except Declined as declined:
            misses.append(Miss(layer=names.give(_layer(candidate)), reason=declined.reason))
            continue
        if site is not None and fused is not None:
            blocks.append(_rewrite(graph, site, fused, names.give(_layer(candidate))))
    if blocks:
        graph.opset_imports[DOMAIN] = DOMAIN_VERSION
        common.RemoveUnusedNodesPass()(model)
    return Fusion(blocks=tuple(blocks), certificate=_certificate(graph, own, blocks, misses))


def is_attention(node: ir.Node) -> bool:
    """Whether it is one of our nodes already."""
    return node.domain == DOMAIN and node.op_type in FUNCTIONS


def recognise(site: Site) -> Fused:
    """What the function from context to pre-sigmoid is; raises Declined with what stands against it."""
    if squeeze_excitation.has_layers(site.transform):
        return squeeze_excitation.check(site.transform, site.channels)
    return linear_context_transform.check(site.transform, site.channels)


def _rewrite(graph: ir.Graph, site: Site, fused: Fused, layer: str) -> Block:
    """The node in place of the Mul; what only the Mul needed is left for the dead-code pass."""
    scale, inexact = site.candidate.scale, fused.groups is not None and cancels(site)
    parameters = [
        register_constant(graph, f"{layer}/{name}", array) for name, array in fused.parameters.items()
    ]
    node = ir.node(
        fused.op,
        [site.candidate.x, *parameters],
        fused.attributes,
        domain=DOMAIN,
        name=f"{layer}/{fused.op}",
    )
    node.metadata_props[MODULE_KEY] = layer
    old, new = scale.outputs[0], node.outputs[0]
    new.name, new.shape, new.type = old.name, old.shape, old.type
    graph.insert_before(scale, node)
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove(scale, safe=True)
    return Block(layer=layer, node=f"{layer}/{fused.op}", fused=fused, site=site, cancels=inexact)


def _layer(candidate: Candidate) -> str:
    """The module of the attention: of what computes the gate, since the Mul may stand in the block."""
    try:
        nodes = nodes_between(candidate.x, candidate.gate)
    except Declined:
        nodes = [node for node in (candidate.gate.producer(),) if node is not None]
    return common_module(nodes) or module_of(candidate.scale)


def _own_block(node: ir.Node, names: "_Names") -> FusedBlock:
    layer = names.give(module_of(node) or (node.name or "").rpartition("/")[0])
    node.metadata_props[MODULE_KEY] = layer
    node.name = node.name or f"{layer}/{node.op_type}"
    return FusedBlock(layer=layer, node=node.name, op=f"{DOMAIN}::{node.op_type}")


class _Names:
    """Layer names, each given once: `attention_1` for the nameless, `x_2` for the second `x`."""

    def __init__(self) -> None:
        self._given: set[str] = set()
        self._nameless = 0

    def give(self, name: str) -> str:
        if not name:
            self._nameless += 1
            name = f"attention_{self._nameless}"
        unique, number = name, 1
        while unique in self._given:
            number += 1
            unique = f"{name}_{number}"
        self._given.add(unique)
        return unique


def _certificate(
    graph: ir.Graph, own: list[FusedBlock], blocks: list[Block], misses: list[Miss]
) -> FusionCertificate:
    """Blocks in the order in which an image meets them, counted in the graph itself."""
    known = {block.node: block for block in own}
    for block in blocks:
        op = f"{DOMAIN}::{block.fused.op}"
        known[block.node] = FusedBlock(layer=block.layer, node=block.node, op=op)
    fused = tuple(known[node.name] for node in graph if node.domain == DOMAIN and node.name in known)
    return FusionCertificate(attention_blocks=len(fused) + len(misses), fused=fused, misses=tuple(misses))
