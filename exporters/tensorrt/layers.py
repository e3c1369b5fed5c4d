"""The layers that an engine has after fusion: what TensorRT made of the graph.

TensorRT-RTX lists them in its build log, also where no GPU can open the engine; TensorRT, which builds
only where it can be opened, has an inspector for it.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

_REFORMAT = "Reformat"
_PROFILE = re.compile(r"\[profile (\d+)\]")
_GROUP = re.compile(r"_(myl\d+)_\d+$")  # compiled together, for one profile
_LAYER = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w*), Inputs: (?P<inputs>.*?), Constants: .*?, "
    r"Outputs: (?P<outputs>\[.*?\]), TacticName"
)
_TENSOR = re.compile(
    r"Name: (?P<name>[^{]*?), Dimensions: \[(?P<shape>[-\d,]*)\], Strides: \[[-\d,]*\], "
    r"StrideOrder: \[(?P<order>[\d,]*)\], Datatype: (?P<dtype>\w+)"
)
# A generated kernel is named after its operations, each shortened: `__myl_CastTran_myl0_1`.
_TRANSPOSE = re.compile(r"^__myl_\w*?Tran(?=[A-Z_])")


@dataclass(frozen=True)
class EngineTensor:
    """A tensor of the engine; -1 in `shape` is dynamic, `order` ranks its dimensions by their strides.

    `dtype` is TensorRT's word for it, as `Half`. TensorRT 10's inspector gives neither of the two.
    """

    name: str
    shape: tuple[int, ...]
    order: tuple[int, ...] = ()
    dtype: str = ""

    @property
    def in_memory(self) -> tuple[int, ...]:
        """Its dimensions as they lie in memory, the outermost first; one of a single element is none."""
        ranked = sorted(zip(self.order, self.shape, strict=False), reverse=True)
        return tuple(size for _, size in ranked if size != 1)


@dataclass(frozen=True)
class EngineLayer:
    """A kernel or copy of the engine; `profile` is the optimization profile that it runs for."""

    name: str
    kind: str
    inputs: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    profile: int = 0

    @property
    def transposes(self) -> bool:
        """Whether it writes a whole tensor in another layout than it read it in, beside what else it does."""
        if any(tensor.order for tensor in self.outputs):
            return any(_differs(a, b) for a in self.inputs for b in self.outputs)
        return self.kind == _REFORMAT or _TRANSPOSE.match(self.name) is not None

    @property
    def label(self) -> str:
        return f"{self.kind} with transpose" if self.transposes and self.kind != _REFORMAT else self.kind


def layers_of_log(text: str) -> tuple[EngineLayer, ...]:
    """The layers that RTX's build log lists in `text`."""
    return _with_profiles(
        (EngineLayer(m["name"], m["kind"], _tensors(m["inputs"]), _tensors(m["outputs"])), line)
        for line in text.splitlines()
        if (m := _LAYER.match(line))
    )


def layers_of_inspector(text: str) -> tuple[EngineLayer, ...]:
    """The layers in an engine inspector's JSON; of an engine built with DETAILED verbosity."""
    return _with_profiles(
        (
            EngineLayer(
                layer["Name"],
                layer.get("LayerType", ""),
                _inspected(layer.get("Inputs", [])),
                _inspected(layer.get("Outputs", [])),
            ),
            json.dumps(layer),
        )
        for layer in json.loads(text)["Layers"]
    )


def of_profile(layers: Iterable[EngineLayer], profile: int = 0) -> tuple[EngineLayer, ...]:
    """Those that run for one profile."""
    return tuple(layer for layer in layers if layer.profile == profile)


def summarize(layers: Sequence[EngineLayer]) -> dict[str, int]:
    """How many there are of each kind, the most frequent first."""
    return dict(Counter(layer.label for layer in layers).most_common())


def _differs(a: EngineTensor, b: EngineTensor) -> bool:
    """Whether `b` has the elements of `a` in another order."""
    return sorted(a.in_memory) == sorted(b.in_memory) and a.in_memory != b.in_memory


def _with_profiles(found: Iterable[tuple[EngineLayer, str]]) -> tuple[EngineLayer, ...]:
    """Say of each which profile it is for: only some name it, but those compiled together share it."""
    pairs = [(layer, _group(layer), _tagged(text)) for layer, text in found]
    by_group: dict[str, int] = {}
    for _, group, profile in pairs:
        by_group[group] = max(profile, by_group.get(group, 0))
    return tuple(
        EngineLayer(layer.name, layer.kind, layer.inputs, layer.outputs, by_group[group])
        for layer, group, _ in pairs
    )


def _group(layer: EngineLayer) -> str:
    found = _GROUP.search(layer.name)
    return found.group(1) if found else layer.name


def _tagged(text: str) -> int:
    return max((int(number) for number in _PROFILE.findall(text)), default=0)


def _tensors(text: str) -> tuple[EngineTensor, ...]:
    return tuple(
        EngineTensor(m["name"], _numbers(m["shape"]), _numbers(m["order"]), m["dtype"])
        for m in _TENSOR.finditer(text)
    )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


def _inspected(tensors: list[dict[str, Any]]) -> tuple[EngineTensor, ...]:
    return tuple(
        EngineTensor(
            t["Name"], tuple(t.get("Dimensions", ())), tuple(t.get("StrideOrder", ())), t.get("Datatype", "")
        )
        for t in tensors
    )
