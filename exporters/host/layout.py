"""From a bundle's graph to the one for this machine: the plain twin optimised, attention put back."""

from collections import Counter
from dataclasses import dataclass

from onnx import ModelProto, helper

from exporters.functions import DOMAIN
from exporters.host.fourth_channel import append_by_product
from exporters.host.nchwc import insert_attention
from exporters.host.optimize import nchwc_block, optimize_for_host
from exporters.host.qlinear import insert_quantized_attention
from exporters.sites import find_sites, without_attention
from lct_deploy.errors import ExportError
from lct_deploy.manifest import Precision


@dataclass(frozen=True, kw_only=True)
class HostGraph:
    """A graph for this machine and one batch; `attention` says in which form its blocks are."""

    model: ModelProto
    attention: str
    needs_library: bool


def lay_out(model: ModelProto, precision: Precision, *, batch: int, library: bool) -> HostGraph:
    """`model` for this machine: onnxruntime's optimised graph of the network without attention, with
    each block's attention put back in the form that costs least here, with our op `library` or without.

    Raises ExportError where onnxruntime has no such layout here, or where a block does not fit it.
    """
    if precision not in ("fp32", "int8"):
        raise ExportError(f"onnxruntime has no {precision} kernels on CPUs: nothing to lay out")
    sites = find_sites(model)
    plain = optimize_for_host(without_attention(model, sites), batch=batch)
    if precision == "int8":
        append_by_product(plain)
        forms = insert_quantized_attention(plain, sites, batch=batch, library=library)
    else:
        forms = insert_attention(plain, sites, batch=batch, block=nchwc_block(), library=library)
    helper.set_model_props(plain, {p.key: p.value for p in model.metadata_props})
    counted = ", ".join(f"{form} in {n} blocks" for form, n in sorted(Counter(forms.values()).items()))
    return HostGraph(
        model=plain,
        attention=counted or "none",
        needs_library=any(node.domain == DOMAIN for node in plain.graph.node),
    )
