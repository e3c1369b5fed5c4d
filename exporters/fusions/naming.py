"""The PyTorch module that nodes come from, as far as exporters leave word of it."""

import re
from collections.abc import Iterable

import onnx_ir as ir

from exporters.nodes import MODULE_KEY

_SCOPES_KEY = "pkg.torch.onnx.name_scopes"
_SCOPES = re.compile(r"'([^']*)'")


def module_of(node: ir.Node) -> str:
    """`layer1.0.attn`, or an empty string where neither metadata nor name tell."""
    if MODULE_KEY in node.metadata_props:
        return node.metadata_props[MODULE_KEY]
    scopes = _SCOPES.findall(node.metadata_props.get(_SCOPES_KEY, ""))
    if scopes:
        return scopes[-2] if len(scopes) > 1 and not scopes[-2].startswith("_") else ""
    return _from_path(node.name or "")


def common_module(nodes: Iterable[ir.Node]) -> str:
    """The innermost module that holds all of `nodes` that say where they come from."""
    modules = [module.split(".") for node in nodes if (module := module_of(node))]
    if not modules:
        return ""
    shared = []
    for parts in zip(*modules, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def _from_path(name: str) -> str:
    """`layer1.0.attn` from TorchScript's `/layer1/layer1.0/attn/Mul`."""
    if not name.startswith("/"):
        return ""
    parts: list[str] = []
    for part in name.split("/")[1:-1]:
        if parts and part.startswith(f"{parts[-1]}."):
            parts[-1] = part
        else:
            parts.append(part)
    return ".".join(parts)
