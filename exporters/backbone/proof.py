"""The proof that a backbone's graph gives PyTorch's maps and gates, batch by batch."""

import platform
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from exporters.backbone.images import BackboneImages
from exporters.gates import GateReader
from exporters.proof import GATE_IMAGES, gate_failures, gate_warnings
from exporters.reference import recorded_attention
from lct_deploy.manifest import BackboneReport, GateParity
from lct_deploy.map_parity import MapMeasure, map_failures
from lct_deploy.models.classifier import ImageBackbone
from lct_deploy.parity import compare_gates, first_drift
from lct_deploy.progress import track
from lct_deploy.runtime import RuntimeOptions
from lct_deploy.runtime.backbone import BackboneRuntime


def torch_maps(backbone: ImageBackbone, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """PyTorch's maps by name for images (N, H, W, 3) uint8; `backbone` is in evaluation mode."""
    with torch.inference_mode():
        outputs = backbone(torch.tensor(images))
    return {name: output.numpy() for name, output in zip(backbone.features, outputs, strict=True)}


def verify_backbone(path: Path, backbone: ImageBackbone, images: BackboneImages) -> BackboneReport:
    """Compare the fp32 graph at `path` with `backbone`; the report says whether and why it fails."""
    measures: dict[str, MapMeasure] = {name: MapMeasure(name) for name in backbone.features}
    with closing(BackboneRuntime.open(path, RuntimeOptions())) as runtime:
        for batch in track(images.batches(), f"PyTorch and {path.name}", total=images.count):
            reference, maps = torch_maps(backbone, batch), runtime.infer(batch)
            for name, measure in measures.items():
                measure.add(reference[name], maps[name], batch.shape[1:3])
        versions = runtime.versions
    parities = tuple(measure.parity() for measure in measures.values())
    gates = _compare_gates(path, backbone, images)
    drift = first_drift(gates, "fp32")
    failures = [failure for parity in parities for failure in map_failures(parity)]
    return BackboneReport(
        artifact=path.name,
        runtime="onnxruntime",
        precision="fp32",
        gates=gates,
        drifts_first=drift.layer if drift else None,
        warnings=gate_warnings(gates, "fp32"),
        failures=(*failures, *gate_failures(gates, "fp32")),
        versions={**versions, "torch": torch.__version__, "machine": platform.machine()},
        images=images.source,
        maps=parities,
    )


def _compare_gates(path: Path, backbone: ImageBackbone, images: BackboneImages) -> tuple[GateParity, ...]:
    """Every block's gates for the first images, those that are read from the graph with the float64 ones."""
    reader = GateReader(path)
    expected, read = defaultdict[str, list[Any]](list), defaultdict[str, list[Any]](list)
    seen, batches = 0, images.batches()
    while reader.layers and seen < GATE_IMAGES:
        batch = next(batches)
        seen += len(batch)
        with recorded_attention(backbone.network) as (_, gates):
            torch_maps(backbone, batch)
        for layer, (values,) in gates.items():
            expected[layer].append(values.numpy())
        for layer, values in reader.named(reader.run(batch)).items():
            read[layer].append(values)
    return tuple(
        compare_gates(layer, np.concatenate(expected[layer]), np.concatenate(values))
        for layer, values in read.items()
    )
