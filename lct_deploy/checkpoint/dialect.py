"""Other people's parameter names to ours.

module.layer1.0.lct.weight  (1, C, 1, 1)   →   layer1.0.attn.w           (C,)
backbone.layer2.3.se.fc.0.weight           →   layer2.3.attn.fc1.weight
_orig_mod.conv1.weight                     →   conv1.weight
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from lct_deploy.errors import CheckpointError

_PREFIXES = ("module.", "backbone.", "_orig_mod.")
_ATTENTION = re.compile(r"^(layer\d+\.\d+)\.(?:lct|attn|att|se|ca)\.(.+)$")
_LCT_NAMES = {"w": "w", "weight": "w", "b": "b", "bias": "b"}
_SE_LAYERS = {
    "fc1": "fc1", "fc2": "fc2",
    "fc.0": "fc1", "fc.2": "fc2",
    "conv_reduce": "fc1", "conv_expand": "fc2",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Translated:
    """Tensors under our names, and the file's own name of each for messages."""

    tensors: dict[str, Tensor]
    original: dict[str, str]


def translate(tensors: Mapping[str, Tensor], *, prefix: str = "") -> Translated:
    """Rename and reshape what is known; a name that is not passes through without its prefix.

    `prefix` is one that this file alone has. Raises CheckpointError where two names of the file mean
    the same parameter.
    """
    translated: dict[str, Tensor] = {}
    original: dict[str, str] = {}
    for key, tensor in tensors.items():
        name, value = _translate_one(_strip_prefixes(key.removeprefix(prefix)), tensor)
        if name in translated:
            raise CheckpointError(f"{original[name]} and {key} both mean {name}")
        translated[name], original[name] = value, key
    return Translated(tensors=translated, original=original)


def _strip_prefixes(key: str) -> str:
    while prefix := next((p for p in _PREFIXES if key.startswith(p)), None):
        key = key.removeprefix(prefix)
    return key


def _translate_one(key: str, tensor: Tensor) -> tuple[str, Tensor]:
    match = _ATTENTION.match(key)
    if match is None:
        return key, tensor
    block, parameter = match.groups()
    if parameter in _LCT_NAMES:
        return f"{block}.attn.{_LCT_NAMES[parameter]}", _as_vector(tensor)
    layer, _, kind = parameter.rpartition(".")
    if layer in _SE_LAYERS:
        return f"{block}.attn.{_SE_LAYERS[layer]}.{kind}", _as_linear(tensor)
    return key, tensor


def _as_vector(tensor: Tensor) -> Tensor:
    """(1, C), (C, 1, 1) and (1, C, 1, 1) → (C,); any other shape as it is, to be reported."""
    return tensor.flatten() if tensor.numel() == max(tensor.shape, default=0) else tensor


def _as_linear(tensor: Tensor) -> Tensor:
    """A 1×1 convolution's weight (O, I, 1, 1) → (O, I)."""
    return tensor[:, :, 0, 0] if tensor.ndim == 4 and tensor.shape[2:] == (1, 1) else tensor
