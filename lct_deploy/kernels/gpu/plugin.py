"""The attention as a TensorRT plugin, in the form that each flavour takes."""

from functools import cache

from lct_deploy.runtime.flavours import Flavour


@cache
def register_plugins(flavour: Flavour) -> None:
    """Make the plugin known to a flavour, once: before a graph is parsed or an engine opened.

    TensorRT-RTX runs the plugin's Python at each call; TensorRT compiles the kernels into the engine,
    which needs the plugin only while it is built. Raises RuntimeUnavailableError for a TensorRT that
    cannot do so.
    """
    if flavour.is_rtx:
        from lct_deploy.kernels.gpu import rtx_plugin as form
    else:
        from lct_deploy.kernels.gpu import aot_plugin as form
    form.register()
