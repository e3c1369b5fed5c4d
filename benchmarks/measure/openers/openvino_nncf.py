"""An fp32 graph in OpenVINO, quantised by its own tool NNCF with that tool's defaults."""

from pathlib import Path

import nncf  # pyright: ignore[reportMissingImports] - only in an environment of its own
import numpy as np
from numpy.typing import NDArray

from benchmarks.measure.messages import Subject
from benchmarks.measure.openers import Runner
from benchmarks.measure.openers.openvino_model import read_graph, runner_of, settings
from lct_deploy.bundle import Bundle
from lct_deploy.errors import UsageError
from lct_deploy.preprocessing import decode


def open_runner(subject: Subject, bundle: Bundle) -> Runner:
    """What stays in float is bf16 where the processor has that, as OpenVINO does it unless told otherwise."""
    if subject.calibration is None:
        raise UsageError("openvino nncf needs images to calibrate with")

    def array(path: Path) -> NDArray[np.uint8]:
        return decode(path.read_bytes(), bundle.manifest.input.preprocessing)[None]

    paths = sorted(subject.calibration.iterdir())
    quantized = nncf.quantize(read_graph(subject), nncf.Dataset(paths, array), subset_size=len(paths))
    return runner_of(quantized, bundle, "int8", settings(subject))
