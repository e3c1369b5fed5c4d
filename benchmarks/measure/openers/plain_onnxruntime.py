"""A graph in onnxruntime with nothing of ours: on its CPU provider, or on OpenVINO's."""

from typing import Any, cast

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.measure.messages import Subject
from benchmarks.measure.openers import Runner
from lct_deploy.bundle import Bundle
from lct_deploy.errors import RuntimeUnavailableError, UsageError

_OPENVINO = "OpenVINOExecutionProvider"


def open_runner(subject: Subject, bundle: Bundle) -> Runner:
    if subject.graph is None:
        raise UsageError(f"{subject.kind} needs a graph")
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = subject.threads
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(subject.graph), settings, providers=_providers(subject))
    if subject.kind == "onnxruntime openvino" and _OPENVINO not in session.get_providers():
        raise RuntimeUnavailableError("onnxruntime has gone on without OpenVINO")
    name = session.get_inputs()[0].name

    def infer(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return cast("list[Any]", session.run(None, {name: images}))[0]

    return Runner(
        infer=infer,
        runtime=f"{subject.kind} {onnxruntime.__version__}",
        precision=subject.precision or bundle.manifest.precision,
        device=session.get_providers()[0],
    )


def _providers(subject: Subject) -> list[str | tuple[str, dict[str, str]]]:
    if subject.kind == "onnxruntime":
        return ["CPUExecutionProvider"]
    options = {
        "device_type": "CPU",
        "precision": "FP32",  # of what a graph leaves open; its Q/DQ stay
        "num_of_threads": str(subject.threads),
    }
    return [(_OPENVINO, options)]
