"""What the server and its models say about themselves."""

from collections.abc import Iterable
from typing import Any

import lct_deploy
from server.served import ServedModel
from server.v2.request import OUTPUT

EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
)
_TENSORRT = ("tensorrt", "tensorrt_plan")
# Backend and platform by the names that clients know.
_PLATFORMS = {
    "onnxruntime": ("onnxruntime", "onnxruntime_onnx"),
    "openvino": ("openvino", "openvino_onnx"),
    "tensorrt": _TENSORRT,
    "tensorrt-rtx": _TENSORRT,
}


def server_metadata() -> dict[str, Any]:
    return {"name": "lct-deploy", "version": lct_deploy.__version__, "extensions": EXTENSIONS}


def model_metadata(model: ServedModel, versions: Iterable[str]) -> dict[str, Any]:
    """Tensors with the batch's axis in front; the input may be sent as BYTES too, a file an element."""
    spec = model.spec
    shape = [-1, spec.height, spec.width, 3]
    return {
        "name": model.name,
        "versions": list(versions),
        "platform": _platform(model)[1],
        "inputs": [{"name": model.manifest.input.name, "datatype": "UINT8", "shape": shape}],
        "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, spec.num_classes]}],
    }


def model_config(model: ServedModel, max_rows: int) -> dict[str, Any]:
    """Tensors without the batch's axis; a request may hold `max_rows` images."""
    spec = model.spec
    backend, platform = _platform(model)
    return {
        "name": model.name,
        "platform": platform,
        "backend": backend,
        "max_batch_size": max_rows,
        "input": [
            {
                "name": model.manifest.input.name,
                "data_type": "TYPE_UINT8",
                "format": "FORMAT_NHWC",
                "dims": [spec.height, spec.width, 3],
            }
        ],
        "output": [{"name": OUTPUT, "data_type": "TYPE_FP32", "dims": [spec.num_classes]}],
        "dynamic_batching": {"preferred_batch_size": [model.max_batch]},
        "parameters": {"precision": {"string_value": spec.precision}},
    }


def _platform(model: ServedModel) -> tuple[str, str]:
    runtime = model.spec.runtime
    return _PLATFORMS.get(runtime, (runtime, runtime))
