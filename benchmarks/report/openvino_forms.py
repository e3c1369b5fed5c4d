"""What attention costs in OpenVINO, from benchmarks.openvino_forms."""

import numpy as np

from benchmarks.report.attention import LCT, cells, groups
from benchmarks.report.section import Section, Shown
from benchmarks.report.sources import Results, Source
from benchmarks.report.tables import digits, table


def _show(source: Source, _: Results) -> Shown:
    over = "LCT over plain (90 % interval of the median) [quartiles]"
    lines = [
        [f"{precision}, batch {batch}", form, *cells(series, LCT, form), digits(float(np.median(pairs.base)))]
        for (precision, batch), series in groups(source).items()
        for (model, form), pairs in series.items()
        if model == LCT
    ]
    header = ("", "form", over, "LCT ms/image", "plain ms/image")
    return Shown(text=f"{source.told('threads')} threads, 224 pixels.\n\n{table(header, lines)}")


SECTION = Section(
    kind="openvino",
    title="What attention costs in OpenVINO",
    command="python -m benchmarks.openvino_forms",
    about="Latency over that of the plain ResNet-50 in OpenVINO, measured one right after the other. "
    "*openvino* is what `export --for openvino` makes, *dynamic* the same compiled for any batch, and "
    "*inlined* the function's body in its place; *onnxruntime* and *tensorrt* are int8 graphs for those, run "
    "in OpenVINO. *compiled* is ONNX Runtime on what `compile` lays out, over the same plain network.",
    show=_show,
    packages=("openvino", "onnxruntime"),
)
