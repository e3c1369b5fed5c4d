"""TensorRT's errors in our words, with the ONNX node and the PyTorch module that they are about."""

import re
from collections.abc import Iterable
from typing import Any

from onnx import ModelProto, NodeProto

from exporters.nodes import node_module
from lct_deploy.errors import ExportError, LctDeployError, RuntimeUnavailableError

_SHOWN = 5
# A builder's error: the reason is in parentheses, with places in TensorRT's own code around it.
_BUILD_ERROR = re.compile(
    r"^.*?Error Code \d+: [^(]*\((?:\[[^]]*\] )?(?P<text>.*?)\s*(?:In \w+ at \S+.*)?\)?$", re.DOTALL
)
_ASSERTION = re.compile(r'^\S+ && "(?P<text>.*)"$|^Assertion failed: (?P<other>.*)$')
_NO_PLUGIN = "Plugin not found"
_MEMORY = "out of memory", "outofmemory", "insufficient memory"


def parser_error(parser: Any, model: ModelProto) -> ExportError:
    """What the ONNX parser could not take: a line for each node, with its module."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    lines = [_describe(error, model) for error in errors]
    return ExportError(
        "TensorRT cannot take this graph:\n" + _listed(lines),
        hint="lct-deploy export CHECKPOINT -o BUNDLE --for tensorrt writes a graph of what it knows",
    )


def build_error(reasons: Iterable[str], model: ModelProto) -> LctDeployError:
    """Why there is no engine, from the errors in TensorRT's log."""
    distinct = list(dict.fromkeys(reasons))
    lines = [_located(_clean(reason), model) for reason in distinct]
    if any(word in reason.lower() for reason in distinct for word in _MEMORY):
        return RuntimeUnavailableError(
            "the GPU has too little memory for this build:\n" + _listed(lines),
            hint="a smaller --batch MIN:OPT:MAX, or free the GPU",
        )
    return ExportError("TensorRT cannot build this engine:\n" + _listed(lines))


def _describe(error: Any, model: ModelProto) -> str:
    """One parser error; its node's index is that in the graph, or in a function of it."""
    name, kind = error.node_name(), error.node_operator()
    inside = error.local_function_stack()
    what = f"node {name or '#' + str(error.node())} ({kind})" if kind or name else "the graph"
    if inside:
        what += f" in function {' in '.join(inside)}"
    nodes = [node for node in model.graph.node if node.name == name] if name else []
    return f"{what}{_module(nodes)}: {_reason(error.desc())}"


def _reason(text: str) -> str:
    """A parser's assertion without its C++."""
    if _NO_PLUGIN in text:
        return "TensorRT has no such operation, and no plugin of that name is registered"
    found = _ASSERTION.match(text.strip())
    return (found["text"] or found["other"]) if found else text.strip()


def _located(text: str, model: ModelProto) -> str:
    """A builder's error with the module of the first node that it names."""
    quoted = set(re.findall(r"'([^']+)'", text))
    return text + _module([node for node in model.graph.node if node.name in quoted])


def _module(nodes: list[NodeProto]) -> str:
    module = node_module(nodes[0]) if nodes else ""
    return f" (PyTorch {module})" if module else ""


def _clean(text: str) -> str:
    found = _BUILD_ERROR.match(text.strip())
    return found["text"] if found else text.strip()


def _listed(lines: list[str]) -> str:
    more = [f"  … and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return "\n".join([*(f"  {line}" for line in lines[:_SHOWN]), *more]) if lines else "  it gives no reason"
