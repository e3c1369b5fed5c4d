"""Networks are traced once in a run of the tests, however many of them export the same one.

Tracing a network takes seconds, and most tests are about what comes after it. What torch.onnx makes anew for
each, the table of its operators, is made once in a process.
"""

import hashlib
import io
import os
import pickle
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Protocol
from unittest.mock import patch

from onnx import ModelProto
from torch import Tensor, nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

import exporters.backbone.graph
import exporters.graph


class Trace(Protocol):
    """`exporters.graph.to_onnx`."""

    def __call__(
        self,
        network: nn.Module,
        size: tuple[int, int],
        *,
        dynamic: tuple[int, ...],
        outputs: list[str],
        opset: int,
    ) -> ModelProto: ...


class _Pickler(pickle.Pickler):
    """Everything that a network is made of: tensors by their values, not by where they lie."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Tensor):
            return bytes, (obj.detach().numpy().tobytes(), str(obj.dtype), tuple(obj.shape))
        return NotImplemented


@contextmanager
def traced_once(directory: Path) -> Generator[None]:
    """Graphs are kept in `directory`, for all processes that run tests."""
    remembered = _remembering(exporters.graph.to_onnx, directory)
    with (
        patch.object(exporters.graph, "to_onnx", remembered),
        patch.object(exporters.backbone.graph, "to_onnx", remembered),
        patch.object(ONNXRegistry, "from_torchlib", staticmethod(cache(ONNXRegistry.from_torchlib))),
    ):
        yield


def _remembering(trace: Trace, directory: Path) -> Trace:
    """`trace`, which looks first whether `directory` has the graph of an equal network."""

    def remembered(network: nn.Module, size: tuple[int, int], **options: Any) -> ModelProto:
        stream = io.BytesIO()
        try:
            _Pickler(stream).dump((network, size, options))
        except (AttributeError, pickle.PicklingError):  # of a class that only its test knows
            return trace(network, size, **options)
        file = directory / hashlib.sha256(stream.getbuffer()).hexdigest()
        if file.exists():
            return ModelProto.FromString(file.read_bytes())
        model = trace(network, size, **options)
        temporary = file.with_suffix(f".{os.getpid()}")
        temporary.write_bytes(model.SerializeToString())
        temporary.rename(file)
        return model

    return remembered
