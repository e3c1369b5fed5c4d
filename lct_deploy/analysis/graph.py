"""Contexts and gates from the graph of a bundle that has them as outputs, on onnxruntime."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from lct_deploy.analysis.base import Attention
from lct_deploy.manifest import CONTEXT_OUTPUT, GATE_OUTPUT
from lct_deploy.runtime.base import RuntimeOptions
from lct_deploy.runtime.onnxruntime import open_session


class GraphGates:
    """An artifact of kind `gates`, on the CPU; raises BundleError for a file that cannot be loaded."""

    def __init__(self, path: Path, options: RuntimeOptions) -> None:
        self._session = open_session(path, options, None)
        self.channels: Mapping[str, int] = {
            output.name.removesuffix(GATE_OUTPUT): output.shape[1]
            for output in self._session.get_outputs()
            if output.name.endswith(GATE_OUTPUT)
        }
        self._outputs = [layer + kind for layer in self.channels for kind in (CONTEXT_OUTPUT, GATE_OUTPUT)]

    def read(self, images: NDArray[np.uint8]) -> dict[str, Attention]:
        values = cast("list[Any]", self._session.run(self._outputs, {"image": images}))
        pairs = zip(self.channels, values[::2], values[1::2], strict=True)
        return {layer: Attention(context=context, gate=gate) for layer, context, gate in pairs}

    def close(self) -> None:
        del self._session
