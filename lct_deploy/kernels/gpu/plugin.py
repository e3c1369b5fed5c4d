"""The attention as a TensorRT plugin, in the form that each flavour takes."""

from functools import cache

from lct_deploy.errors import RuntimeUnavailableError
from lct_deploy.kernels.gpu.embedded import ATTENTION, TAIL
from lct_deploy.runtime.flavours import Flavour


@cache
def register_plugins(flavour: Flavour) -> None:
    """Make the plugins known to a flavour, once: before a graph is parsed or an engine opened.

    TensorRT-RTX calls the plugin's Python whenever an engine runs; TensorRT copies the kernels into the
    engine, and needs the plugin only while it builds. Raises RuntimeUnavailableError for a TensorRT that
    cannot do so.
    """
    if flavour.is_rtx:
        from lct_deploy.kernels.gpu.rtx_plugin import register
    else:
        try:
            from lct_deploy.kernels.gpu.aot_plugin import register
        except ImportError as error:
            raise RuntimeUnavailableError(
                f"TensorRT {flavour.version} cannot copy a plugin's kernels into an engine: {error}",
                hint="pip install -U 'tensorrt>=10.9', or --attention native",
            ) from error
    register((ATTENTION, TAIL))
