"""ONNX Runtime on a graph in memory, on the CPU: for references and checks while exporting."""

from typing import cast

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto

from lct_deploy.errors import ExportError

Outputs = dict[str, NDArray[np.float32]]


class Session:
    """`run` gives named values for a batch of inputs."""

    def __init__(self, model: ModelProto, *, threads: int = 0) -> None:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 4  # what fails is raised
        try:
            self._session = onnxruntime.InferenceSession(
                model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise ExportError(f"ONNX Runtime cannot load the graph: {error}") from error
        self._input = self._session.get_inputs()[0].name

    def run(self, names: list[str], batch: NDArray[np.generic]) -> Outputs:
        """Raises ExportError where the graph does not take this batch."""
        try:
            values = self._session.run(names, {self._input: batch})
        except Exception as error:  # as above
            raise ExportError(f"ONNX Runtime cannot run the graph: {error}") from error
        return dict(zip(names, cast("list[NDArray[np.float32]]", values), strict=True))

    def run_all(self, names: list[str], images: NDArray[np.generic], *, batch: int, fixed: bool) -> Outputs:
        """Any number of inputs, `batch` at a time; a `fixed` batch is filled up with copies of its last."""
        parts: list[Outputs] = []
        for start in range(0, len(images), batch):
            chunk = images[start : start + batch]
            size = len(chunk)
            if fixed and size < batch:
                chunk = np.concatenate([chunk, np.repeat(chunk[-1:], batch - size, axis=0)])
            parts.append({name: value[:size] for name, value in self.run(names, chunk).items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in names}
