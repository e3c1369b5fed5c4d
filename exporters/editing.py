"""Editing an ONNX graph: who makes and who reads a value, new nodes, and what is then left over."""

from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper


class GraphEditor:
    """A model edited in place.

    New nodes are collected by `node` and enter the graph with `replace`; the maps of makers and
    readers are those of the graph as it was opened, but for what `replace` changes.
    """

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.makers: dict[str, NodeProto] = {}
        self.readers: defaultdict[str, list[NodeProto]] = defaultdict(list)
        self.constants: dict[str, TensorProto] = {t.name: t for t in model.graph.initializer}
        self._pending: list[NodeProto] = []
        for node in model.graph.node:
            self._register(node)

    def array(self, name: str) -> NDArray[Any]:
        """The initialiser called `name`; raises KeyError for a value that is computed."""
        return numpy_helper.to_array(self.constants[name])

    def only_reader(self, value: str) -> NodeProto | None:
        """The one node that reads `value`, or None where there are more, or the graph returns it."""
        returned = any(output.name == value for output in self.model.graph.output)
        readers = self.readers[value]
        return readers[0] if len(readers) == 1 and not returned else None

    def constant(self, name: str, values: NDArray[Any]) -> str:
        """Add an initialiser; returns its name."""
        tensor = numpy_helper.from_array(np.asarray(values, order="C"), name)
        self.model.graph.initializer.append(tensor)
        self.constants[name] = tensor
        return name

    def node(
        self,
        op: str,
        inputs: list[str],
        output: str,
        *,
        domain: str = "",
        metadata: dict[str, str] | None = None,
        others: tuple[str, ...] = (),
        **attributes: Any,
    ) -> str:
        """Collect a node, named after its first output; returns that output. `others` follow it."""
        outputs = [output, *others]
        node = helper.make_node(op, inputs, outputs, name=f"{output}/{op}", domain=domain, **attributes)
        for key, value in (metadata or {}).items():
            node.metadata_props.add(key=key, value=value)
        self._pending.append(node)
        return output

    def declare(self, value: str, shape: list[int]) -> None:
        """State the shape of a float32 value that the runtime cannot infer: it plans its memory by shapes."""
        info = helper.make_tensor_value_info(value, TensorProto.FLOAT, shape)
        self.model.graph.value_info.append(info)

    def reshaped(self, value: str, shape: list[int]) -> str:
        """Collect a Reshape of `value`, unless there is one already; returns its output."""
        name = f"{value}.{'x'.join(map(str, shape))}"
        if f"{name}.shape" in self.constants:
            return name
        return self.node("Reshape", [value, self.constant(f"{name}.shape", np.array(shape, np.int64))], name)

    def replace(self, old: NodeProto) -> None:
        """Put the nodes collected since the last call in the place of `old`."""
        position = next(i for i, node in enumerate(self.model.graph.node) if node is old)
        metadata = list(old.metadata_props)
        del self.model.graph.node[position]
        for name in old.input:
            self.readers[name] = [node for node in self.readers[name] if node is not old]
        for offset, node in enumerate(self._pending):
            node.metadata_props.extend(metadata)
            self.model.graph.node.insert(position + offset, node)
            self._register(self.model.graph.node[position + offset])
        self._pending.clear()

    def use_domain(self, domain: str, version: int) -> None:
        """Import an operator set, where the model does not yet."""
        if all(entry.domain != domain for entry in self.model.opset_import):
            self.model.opset_import.append(helper.make_opsetid(domain, version))

    def drop_unused(self) -> None:
        """Remove nodes whose results nobody reads, then initialisers and shapes that are left over."""
        graph = self.model.graph
        needed = {output.name for output in graph.output}
        kept: list[NodeProto] = []
        for node in reversed(graph.node):
            if needed.intersection(node.output):
                needed.update(node.input)
                kept.append(node)
        del graph.node[:]
        graph.node.extend(reversed(kept))
        _keep(graph.initializer, needed)
        _keep(graph.value_info, needed)

    def _register(self, node: NodeProto) -> None:
        for name in node.output:
            self.makers[name] = node
        for name in node.input:
            self.readers[name].append(node)


def _keep(values: Any, names: set[str]) -> None:
    """Keep those of a repeated field's entries that are called one of `names`."""
    kept = [value for value in values if value.name in names]
    del values[:]
    values.extend(kept)


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """The value of a node's attribute, or `default`."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)
