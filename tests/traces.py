"""Networks are traced once in a run of the tests, however many of them export the same one.

Tracing a network takes seconds, and most tests are about what comes after it.
"""

import hashlib
import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onnx import ModelProto
from torch import Tensor, nn

Trace = Callable[[nn.Module, int, int], ModelProto]


class _Pickler(pickle.Pickler):
    """Everything that a network is made of: tensors by their values, not by where they lie."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Tensor):
            return bytes, (obj.detach().numpy().tobytes(), str(obj.dtype), tuple(obj.shape))
        return NotImplemented


def remembering(trace: Trace, directory: Path) -> Trace:
    """`trace`, which looks first whether `directory` has the graph of an equal network."""

    def remembered(classifier: nn.Module, size: int, opset: int) -> ModelProto:
        stream = io.BytesIO()
        try:
            _Pickler(stream).dump((classifier, size, opset))
        except (AttributeError, pickle.PicklingError):  # of a class that only its test knows
            return trace(classifier, size, opset)
        file = directory / hashlib.sha256(stream.getbuffer()).hexdigest()
        if file.exists():
            return ModelProto.FromString(file.read_bytes())
        model = trace(classifier, size, opset)
        temporary = file.with_suffix(f".{os.getpid()}")
        temporary.write_bytes(model.SerializeToString())
        temporary.rename(file)
        return model

    return remembered
