"""All sections, in the order in which they stand: what decides whether to adopt first, details last."""

from benchmarks.report import (
    ablations,
    accuracy,
    attention,
    gpu,
    kernel_resources,
    openvino_forms,
    openvino_layers,
    peers,
    roofline,
    scaling,
    serving,
    serving_life,
    times,
)
from benchmarks.report.section import Section

SECTIONS: tuple[Section, ...] = (
    attention.SECTION,
    openvino_forms.SECTION,
    peers.SECTION,
    accuracy.ACCURACY,
    serving.COMPARISON,
    serving.OVERHEAD,
    serving_life.STOPS,
    serving_life.SOAK,
    gpu.NETWORKS,
    gpu.KERNEL,
    roofline.SECTION,
    openvino_layers.SECTION,
    scaling.SECTION,
    times.WAITS,
    serving.BATCHING,
    serving.OBSERVING,
    serving.CLIENTS,
    serving_life.FUZZ,
    kernel_resources.SECTION,
    accuracy.TRAINING,
    ablations.SECTION,
    times.HARNESS,
)
