"""Hybrids of an fp32 graph and its low-precision variant: chosen layers of the one, the rest of the other."""

from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass, field

from onnx import ModelProto, NodeProto, helper

from exporters.functions import DOMAIN
from exporters.nodes import attention_nodes, node_module
from exporters.quantization.emulation import is_scaling
from exporters.quantization.rewrite import copied
from lct_deploy.errors import ExportError

_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear", "Cast")
_LOW = "low_"  # before the names of the variant's constants and functions in a hybrid


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """What is in low precision as a whole or not at all: its nodes in either graph."""

    name: str
    module: str
    high: list[NodeProto]
    low: list[NodeProto] = field(default_factory=list[NodeProto])


class Hybrids:
    """Two graphs of one network, cut into the same layers."""

    def __init__(self, source: ModelProto, variant: ModelProto) -> None:
        self.source, self.layers = source, _layers(source)
        self._variant = _Renamed(variant, source)
        self._homes = {output: layer for layer in self.layers for n in layer.high for output in n.output}
        self._makers: dict[str, Layer] = {}  # which layer computes a tensor of the variant
        self._exact: dict[str, str] = {}  # a tensor of the variant → the one in fp32 that it stands for
        self._final: dict[str, str] = {}  # a tensor in fp32 → what stands for it behind all conversions
        self._assign(variant)

    def changed(self) -> list[Layer]:
        """The layers whose computation differs, in graph order."""
        return [layer for layer in self.layers if not self._is_same(layer)]

    def build(self, low: Sequence[Layer]) -> ModelProto:
        """The network with the layers `low` as the variant has them, and all others in fp32."""
        chosen = {id(layer) for layer in low}
        nodes: list[NodeProto] = []
        for layer in self.layers:
            if id(layer) in chosen:
                nodes += [self._variant.node(self._low(node, chosen)) for node in layer.low]
            else:
                nodes += [self._high(node, chosen) for node in layer.high]
        return self._variant.model(nodes)

    def _assign(self, variant: ModelProto) -> None:
        """Give every node of the variant to a layer; raises ExportError for one that belongs to none."""
        stem = _first_convolution(variant)
        layers = {node.name: layer for layer in self.layers for node in layer.high}
        exact = {node.name: node.output[0] for node in self.source.graph.node}
        # An attention in other operators than in the fp32 graph is known by its module.
        modules = {node_module(node): layers[node.name] for node in attention_nodes(self.source)}
        readers = {name: node for node in reversed(variant.graph.node) for name in node.input}
        for index, node in enumerate(variant.graph.node):
            layer = self.layers[0] if index < stem else layers.get(node.name)
            if layer is None and _converts(node):
                # Of what a layer computes, or of its weights.
                layer = self._makers.get(node.input[0]) or layers.get(readers[node.output[0]].name)
            layer = layer or _named_after(node.name, layers) or modules.get(node_module(node))
            if layer is None:
                raise ExportError(f"{node.name or node.op_type} has no counterpart in the fp32 graph")
            layer.low.append(node)
            self._register(node, layer, exact.get(node.name))
        for name in {output for layer in self.layers for output in layer.high[-1].output} - set(self._final):
            raise ExportError(f"{name} of the fp32 graph has no counterpart in the variant")

    def _register(self, node: NodeProto, layer: Layer, counterpart: str | None) -> None:
        output = node.output[0]
        self._makers[output] = layer
        converted = self._exact.get(node.input[0]) if _converts(node) else None
        exact = output if output in self._homes else converted or counterpart
        if exact is not None:
            self._exact[output] = exact
            self._final[exact] = output

    def _low(self, node: NodeProto, chosen: Set[int]) -> NodeProto:
        """A node of the variant, reading in fp32 what layers outside `chosen` compute."""
        rewired = copied(node)
        for index, name in enumerate(node.input):
            maker = self._makers.get(name)
            if maker is not None and id(maker) not in chosen:
                rewired.input[index] = self._exact[name]
        return rewired

    def _high(self, node: NodeProto, chosen: Set[int]) -> NodeProto:
        """A node of the fp32 graph, reading what layers in `chosen` make of their outputs."""
        rewired = copied(node)
        for index, name in enumerate(node.input):
            home = self._homes.get(name)
            if home is not None and id(home) in chosen:
                rewired.input[index] = self._final[name]
        return rewired

    def _is_same(self, layer: Layer) -> bool:
        low = [self._low(node, {id(layer)}) for node in layer.low]
        return low == layer.high and not any(map(self._variant.is_new, low))


def _named_after(name: str, layers: dict[str, Layer]) -> Layer | None:
    """The layer whose node `name` begins with: so nodes are called that stand in the place of one."""
    while (name := name.rpartition("/")[0]) and name not in layers:
        pass
    return layers.get(name)


class _Renamed:
    """The variant's constants and functions, beside the fp32 graph's that have the same names."""

    def __init__(self, variant: ModelProto, source: ModelProto) -> None:
        self._source = {tensor.name: tensor for tensor in source.graph.initializer}
        self._constants = {tensor.name: tensor for tensor in variant.graph.initializer}
        known = {function.name: function for function in source.functions}
        self._functions = {f.name for f in variant.functions}
        self._new_functions = {f.name for f in variant.functions if f != known.get(f.name)}
        self._shell = _shell(source, variant)

    def is_new(self, node: NodeProto) -> bool:
        """Whether a node has the variant's own constants or function body."""
        return (node.domain == DOMAIN and node.op_type in self._new_functions) or any(
            name in self._constants and self._constants[name] != self._source.get(name) for name in node.input
        )

    def node(self, node: NodeProto) -> NodeProto:
        """`node` with the variant's constants and function body, in place."""
        for index, name in enumerate(node.input):
            if name in self._constants:
                node.input[index] = _LOW + name
        if node.domain == DOMAIN and node.op_type in self._functions:
            node.op_type = _LOW + node.op_type
        return node

    def model(self, nodes: Sequence[NodeProto]) -> ModelProto:
        """A model of nodes from both graphs."""
        model = ModelProto()
        model.CopyFrom(self._shell)
        model.graph.node.extend(nodes)
        read = {name for node in nodes for name in node.input}
        model.graph.initializer.extend(tensor for name, tensor in self._source.items() if name in read)
        for name, tensor in self._constants.items():
            if _LOW + name in read:
                added = model.graph.initializer.add()
                added.CopyFrom(tensor)
                added.name = _LOW + name
        return model


def _shell(source: ModelProto, variant: ModelProto) -> ModelProto:
    """Inputs, outputs, operator sets and functions of a hybrid: all but its nodes and constants."""
    shell = ModelProto(ir_version=max(source.ir_version, variant.ir_version))
    shell.graph.name = "hybrid"
    shell.graph.input.extend(source.graph.input)
    shell.graph.output.extend(source.graph.output)
    versions: dict[str, int] = {}
    for entry in (*source.opset_import, *variant.opset_import):
        versions[entry.domain] = max(entry.version, versions.get(entry.domain, 0))
    shell.opset_import.extend(helper.make_opsetid(*entry) for entry in versions.items())
    for prefix, function in (*(("", f) for f in source.functions), *((_LOW, f) for f in variant.functions)):
        added = shell.functions.add()
        added.CopyFrom(function)
        added.name = prefix + function.name
        for entry in added.opset_import:
            entry.version = versions.get(entry.domain, entry.version)
    return shell


def _layers(source: ModelProto) -> list[Layer]:
    """Every node a layer, but for ReLUs and for what precedes the first convolution."""
    nodes = list(source.graph.node)
    stem = _first_convolution(source)
    readers = Counter(name for node in nodes for name in node.input)
    layers = [Layer(name=nodes[stem].name, module=node_module(nodes[stem]), high=nodes[: stem + 1])]
    makers = {nodes[stem].output[0]: layers[0]}
    for node in nodes[stem + 1 :]:
        layer = makers.get(node.input[0]) if node.op_type == "Relu" and readers[node.input[0]] == 1 else None
        if layer is None:
            layer = Layer(name=node.name, module=node_module(node), high=[])
            layers.append(layer)
        layer.high.append(node)
        makers[node.output[0]] = layer
    return layers


def _converts(node: NodeProto) -> bool:
    return node.op_type in _CONVERSIONS or is_scaling(node)


def _first_convolution(model: ModelProto) -> int:
    return next(index for index, node in enumerate(model.graph.node) if node.op_type == "Conv")
