"""A graph in OpenVINO, one compiled model for each batch size, as its documentation has it for latency."""

from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from benchmarks.measure.messages import Subject
from benchmarks.measure.openers import Runner
from lct_deploy.bundle import Bundle
from lct_deploy.errors import UsageError


def open_runner(subject: Subject, bundle: Bundle) -> Runner:
    """Of bf16 the graph is that of fp32, and OpenVINO computes in bf16."""
    precision = subject.precision or bundle.manifest.precision
    # Left alone it computes fp32 graphs in bf16 where the processor has that.
    hint = {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32"}
    return runner_of(read_graph(subject), bundle, precision, {**settings(subject), **hint})


def read_graph(subject: Subject) -> openvino.Model:
    if subject.graph is None:
        raise UsageError(f"{subject.kind} needs a graph")
    return openvino.Core().read_model(subject.graph)


def settings(subject: Subject) -> dict[str, Any]:
    return {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": subject.threads}


def runner_of(model: openvino.Model, bundle: Bundle, precision: str, settings: dict[str, Any]) -> Runner:
    core, compiled = openvino.Core(), dict[int, Any]()
    height, width = bundle.manifest.input.height, bundle.manifest.input.width

    def infer(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        batch = len(images)
        if batch not in compiled:
            model.reshape([batch, height, width, 3])
            compiled[batch] = core.compile_model(model, "CPU", settings)
        return compiled[batch](images)[0]

    return Runner(
        infer=infer,
        runtime=f"openvino {openvino.__version__.split('-')[0]}",
        precision=precision,
        device=core.get_property("CPU", "FULL_DEVICE_NAME"),
    )
