"""Which layer's precision is to blame for the error of a low-precision graph.

Hybrids of the fp32 graph and its variant, some layers in low precision and the rest in fp32, run on
onnxruntime's CPU provider; the search descends into the layers whose low precision causes the error.
"""

import heapq
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto
from pydantic import BaseModel, ConfigDict, Field

from exporters.half import emulate
from exporters.hybrids import Hybrids, Layer
from exporters.images import spread
from exporters.quantization.emulation import compute_in_float
from lct_deploy.bundle import GRAPH, Bundle
from lct_deploy.datasets import list_images
from lct_deploy.errors import DataError, UsageError
from lct_deploy.manifest import PRECISION_KEY, Precision
from lct_deploy.parity import in_batches
from lct_deploy.preprocessing import Preprocessing, load_image
from lct_deploy.progress import track
from lct_deploy.runtime import RuntimeOptions, open_artifact

IMAGES = 16
RUNNERS_UP = 3
WORTH_NAMING = 0.05  # share of the squared error from which a runner-up is looked for

_BATCH = 8
_EMULATIONS: dict[Precision, Callable[[ModelProto], ModelProto]] = {
    "fp16": emulate,
    "bf16": emulate,
    "fp8": compute_in_float,
}

Images = NDArray[np.uint8]
T = TypeVar("T")


class _Part(BaseModel):
    # An error is infinite where logits are: JSON has no number for that.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class LayerError(_Part):
    """A layer and the error that it causes when it alone is in low precision."""

    node: str = Field(description="its name in both graphs")
    module: str = Field(description="the PyTorch module; empty where the graph does not say")
    error: float = Field(description="RMS logit error with this layer alone in low precision")
    share: float = Field(description="of the whole variant's squared error; shares need not add up to 1")


class Blame(_Part):
    """Errors are RMS differences of logits from the fp32 graph's; infinite for logits that are not finite."""

    precision: Precision
    images: int
    logits: float = Field(description="RMS of the fp32 logits")
    error: float = Field(description="of the whole variant")
    culprit: LayerError
    restored: float = Field(description="error of the variant with the culprit alone in fp32")
    runners_up: tuple[LayerError, ...] = Field(
        description="the next worst that are worth naming, in descending order"
    )
    layers: int = Field(description="that differ between the graphs")
    runs: int = Field(description="hybrids that were measured")


def blame_bundle(
    bundle: Bundle, runtime: str, precision: Precision | None = None, images: Path | None = None
) -> Blame:
    """`blame` for a bundle's graph on its golden images, or on a few of the directory `images`.

    Raises UsageError for an fp32 graph, DataError for a directory without images.
    """
    artifact = bundle.artifact(runtime, precision)
    if artifact.precision == "fp32":
        held = sorted({a.precision for a in bundle.manifest.artifacts} - {"fp32"})
        raise UsageError(
            f"{bundle.path}: {artifact.path} is in fp32, it has no precision to blame",
            hint=f"--precision {' or '.join(held)}"
            if held
            else "export with --precision int8, fp8, fp16 or bf16",
        )
    chosen = bundle.golden().images
    if images is not None:
        chosen = _read_images(images, bundle.manifest.input.preprocessing)
    source = onnx.load(bundle.path / (artifact.source or GRAPH))
    return blame(source, onnx.load(bundle.file(artifact)), chosen)


def blame(source: ModelProto, variant: ModelProto, images: Images) -> Blame:
    """Name the layer of `variant`, made from the fp32 graph `source`, that costs it most.

    A layer is a node with its weights, the ReLU behind it and the conversions of what it gives. Halves are
    measured, and the one with the largest error is split until single layers are left: in some
    2 log2(layers) runs where one layer stands out, in 2 layers - 1 at most where none does. fp16, bf16 and
    fp8 are emulated in float32. Raises UsageError for a variant that is in fp32 or does not differ from
    `source`, ExportError for one that was not made from it.
    """
    precision = _precision(variant)
    hybrids = Hybrids(source, _EMULATIONS[precision](variant) if precision in _EMULATIONS else variant)
    layers = hybrids.changed()
    if not layers:
        raise UsageError("the graphs do not differ")
    bench = _Bench(hybrids, images)
    whole = bench.error(layers)
    found: list[tuple[float, Layer]] = []
    search = _search(layers, whole, bench.error, found)
    for _ in track(search, "bisecting, at most", total=2 * len(layers) - 2):
        pass
    found.sort(key=lambda entry: -entry[0])
    worst, *others = [_layer_error(layer, error, whole) for error, layer in found]
    restored = bench.error([layer for layer in layers if layer is not found[0][1]])
    return Blame(
        precision=precision,
        images=len(images),
        logits=_rms(bench.reference),
        error=whole,
        culprit=worst,
        restored=restored,
        runners_up=tuple(layer for layer in others[:RUNNERS_UP] if layer.error > _least(whole)),
        layers=len(layers),
        runs=bench.runs,
    )


def describe_blame(found: Blame) -> str:
    """The verdict in words, for the terminal."""
    worst = found.culprit
    return "\n".join(
        [
            f"{found.precision}: RMS logit error {found.error:.3g} on {found.images} images "
            f"(logits are {found.logits:.3g})",
            f"{_named(worst)}: alone it causes {worst.share:.0%} of the squared error ({worst.error:.3g}); "
            f"with this layer in fp32 the error is {found.restored:.3g}",
            *(
                f"  next: {_named(layer)}: {layer.share:.0%} ({layer.error:.3g})"
                for layer in found.runners_up
            ),
            f"  {found.layers} layers differ from fp32, {found.runs} hybrids were measured",
        ]
    )


def _named(layer: LayerError) -> str:
    return f"{layer.node} (PyTorch {layer.module})" if layer.module else layer.node


def _precision(variant: ModelProto) -> Precision:
    for precision in ("int8", "fp8", "fp16", "bf16"):
        if any((p.key, p.value) == (PRECISION_KEY, precision) for p in variant.metadata_props):
            return precision
    raise UsageError("the variant is in fp32, it has no precision to blame")


def _read_images(directory: Path, preprocessing: Preprocessing) -> Images:
    """Some images of a directory, spread over it."""
    if not directory.is_dir():
        raise DataError(f"{directory}: no such directory")
    paths = list_images(directory)
    if not paths:
        raise DataError(f"{directory}: holds no JPEG, PNG or WebP images")
    chosen = spread(IMAGES, len(paths))
    return np.stack([load_image(paths[index], preprocessing) for index in chosen])


# The search


def _search(
    layers: Sequence[T],
    whole: float,
    measure: Callable[[Sequence[T]], float],
    found: list[tuple[float, T]],
) -> Iterator[None]:
    """Append the layers that are measured alone to `found`, with their errors; yields after each run.

    A group's error is taken for the most that one of its layers causes: the group with the largest is
    split first, and a single layer whose turn comes is the worst of what is left.
    """
    if len(layers) == 1:
        found.append((whole, layers[0]))
    order, settled, least = count(), 0, _least(whole)
    groups = [(-whole, len(layers), next(order), layers)]
    while groups and settled <= RUNNERS_UP:
        negative, size, _, group = heapq.heappop(groups)
        if settled and -negative <= least:
            return
        if size == 1:
            settled += 1
            continue
        for half in (group[: size // 2], group[size // 2 :]):
            error = measure(half)
            if len(half) == 1:
                found.append((error, half[0]))
            heapq.heappush(groups, (-error, len(half), next(order), half))
            yield


def _least(whole: float) -> float:
    """The error of a layer that is worth naming beside the worst."""
    return math.sqrt(WORTH_NAMING) * whole


def _layer_error(layer: "Layer", error: float, whole: float) -> LayerError:
    share = (error / whole) ** 2 if 0 < whole < math.inf else float(error > 0)
    return LayerError(node=layer.name, module=layer.module, error=error, share=share)


class _Bench:
    """Runs hybrids over the images, and counts them."""

    def __init__(self, hybrids: "Hybrids", images: Images) -> None:
        self.hybrids, self.images, self.runs = hybrids, images, 0
        self.reference = _logits(hybrids.source, images)

    def error(self, low: "Sequence[Layer]") -> float:
        self.runs += 1
        return _rms(_logits(self.hybrids.build(low), self.images) - self.reference)


def _logits(model: ModelProto, images: Images) -> NDArray[np.float64]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "hybrid.onnx"
        onnx.save(model, path)
        with closing(open_artifact("onnxruntime", path, RuntimeOptions())) as runtime:
            (logits,) = in_batches(lambda chunk: [runtime.infer(chunk)], images, _BATCH)
    return logits.astype(np.float64)


def _rms(values: NDArray[np.float64]) -> float:
    return float(np.sqrt((values**2).mean())) if np.isfinite(values).all() else math.inf


# The hybrids
