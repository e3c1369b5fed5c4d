"""Which blocks the plots show."""

from collections.abc import Mapping, Sequence

from lct_deploy.errors import UsageError
from lct_deploy.suggest import did_you_mean

_MODULE = ".attn"  # what the attention of a residual block is called in it


def choose_layers(channels: Mapping[str, int], wanted: Sequence[str], model: str) -> tuple[str, ...]:
    """Those called `wanted`, `layer2.0` for `layer2.0.attn`; without any the first of each stage.

    `channels` are those of each layer of `model`, in graph order: a stage is known by its number. Raises
    UsageError for a name that no layer has, or where there are no layers.
    """
    if not channels:
        raise UsageError(f"{model}: the network has no attention")
    if wanted:
        return tuple(_find(channels, name, model) for name in wanted)
    firsts: dict[int, str] = {}
    for layer, count in channels.items():
        firsts.setdefault(count, layer)
    return tuple(firsts.values())


def _find(layers: Mapping[str, int], name: str, model: str) -> str:
    for layer in (name, name + _MODULE):
        if layer in layers:
            return layer
    places = [layer.removesuffix(_MODULE) for layer in layers]
    raise UsageError(
        f"{model}: no attention block {name!r}{did_you_mean(name.removesuffix(_MODULE), places)}",
        hint=f"its blocks are {', '.join(places)}",
    )
