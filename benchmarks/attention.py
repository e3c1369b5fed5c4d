"""What attention costs on the CPU: every form of LCT and SE beside the plain network, in one process.

`python -m benchmarks.attention` interleaves all forms of one precision and batch, so that what else the
machine does meets all of them, and writes every sample to benchmarks/results/attention.csv.
`python -m benchmarks.attention_report` makes the tables and the plot of it.

    default   a plain torch.onnx.export, for int8 with onnxruntime's quantize_static as it comes
    portable  the bundle's graph: one function a block        onnxruntime   `--for onnxruntime`
    stock     `compile` without the op library                library       `compile` with it
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from onnxruntime.quantization import CalibrationDataReader, quantize_static

from benchmarks.networks import random_network
from benchmarks.rows import RESULTS, write_rows
from exporters.functions import with_layer_normalization
from exporters.graph import export_graph, trace
from exporters.host.layout import lay_out
from exporters.images import parity_images
from exporters.quantization.calibration import calibrate
from exporters.quantization.histogram import DEFAULT_METHOD
from exporters.quantization.qdq import quantize
from lct_deploy.kernels.cpu import op_library
from lct_deploy.manifest import Precision
from lct_deploy.models import ResNet
from lct_deploy.models.classifier import ImageClassifier
from lct_deploy.preprocessing import evaluation_preprocessing
from lct_deploy.progress import track
from lct_deploy.runtime.base import available_cores

SIZE = 224
PREPROCESSING = evaluation_preprocessing(SIZE)
MODELS = ("resnet50", "lct_resnet50", "se_resnet50")
CALIBRATION = 16

Images = NDArray[np.uint8]
Runner = Callable[[Images], object]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One timed inference: `round` tells which samples were taken one after the other."""

    model: str
    form: str
    precision: str
    batch: int
    threads: int
    round: int
    milliseconds: float


def main() -> None:
    arguments = _arguments()
    threads = available_cores()
    torch.set_num_threads(threads)
    networks = {arch: random_network(arch) for arch in MODELS}
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as directory:
        for precision in arguments.precision:
            graphs = {
                arch: _graphs(network, precision, Path(directory)) for arch, network in networks.items()
            }
            for batch in arguments.batch:
                rounds = max(arguments.rounds // batch, 12)
                # Apart: torch's threads spin after their work, on the cores of whoever comes next.
                for runners in (_sessions(graphs, precision, batch, threads), _eager(networks, precision)):
                    samples += _measure(dict(runners), precision, batch, threads, rounds)
    write_rows(arguments.output, [asdict(sample) for sample in samples])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--precision", nargs="+", default=["fp32", "int8"], choices=["fp32", "int8"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--rounds", type=int, default=120, help="at batch 1; fewer at larger ones")
    parser.add_argument("--output", type=Path, default=RESULTS / "attention.csv")
    return parser.parse_args()


def _graphs(network: ResNet, precision: Precision, directory: Path) -> dict[str, ModelProto]:
    """The graphs that a bundle could hold, by form."""
    portable = export_graph(network, PREPROCESSING, metadata={}).model
    naive = trace(ImageClassifier(network, PREPROCESSING).eval(), SIZE, 20)
    if precision == "int8":
        return {
            "default": _quantize_static(naive, directory),
            "portable": _quantize(portable),
            "onnxruntime": _quantize(with_layer_normalization(portable)),
        }
    return {"default": naive, "portable": portable, "onnxruntime": with_layer_normalization(portable)}


def _images() -> Images:
    return parity_images(PREPROCESSING, None, ()).images[:CALIBRATION]


def _quantize(model: ModelProto) -> ModelProto:
    batches = np.split(_images(), CALIBRATION // 4)
    return quantize(model, calibrate(model, batches, DEFAULT_METHOD, total=len(batches)), "onnxruntime")


class _Reader(CalibrationDataReader):
    def __init__(self) -> None:
        self.images: Iterator[Images] = iter(np.split(_images(), CALIBRATION))

    def get_next(self) -> dict[str, Images] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        images = next(self.images, None)
        return None if images is None else {"image": images}


def _quantize_static(model: ModelProto, directory: Path) -> ModelProto:
    """What onnxruntime makes of it with its defaults."""
    source, target = directory / "float.onnx", directory / "static.onnx"
    onnx.save(model, source)
    quantize_static(str(source), str(target), _Reader())
    return onnx.load(target)


def _sessions(
    graphs: dict[str, dict[str, ModelProto]], precision: Precision, batch: int, threads: int
) -> Iterator[tuple[tuple[str, str], Runner]]:
    for arch, forms in graphs.items():
        plain = arch == "resnet50"
        for form in ("portable",) if plain else forms:
            yield (arch, form), _session(forms[form], threads)
        for form, library in (("stock", False), ("library", True)):
            if not plain and (op_library() is not None or not library):
                graph = lay_out(forms["portable"], precision, batch=batch, library=library)
                yield (arch, form), _session(graph.model, threads)


def _eager(networks: dict[str, ResNet], precision: Precision) -> Iterator[tuple[tuple[str, str], Runner]]:
    for arch, network in networks.items() if precision == "fp32" else ():
        classifier = ImageClassifier(network, PREPROCESSING).eval()
        classifier.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        yield (arch, "torch eager"), _torch(classifier)
        yield (arch, "torch compile"), _torch(torch.compile(classifier))


def _session(model: ModelProto, threads: int) -> Runner:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # The sessions lie in one process: their threads must not spin while another is timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if library := op_library():
        options.register_custom_ops_library(str(library))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    def run(images: Images) -> object:
        return session.run(["logits"], {"image": images})

    return run


def _torch(classifier: Callable[[torch.Tensor], torch.Tensor]) -> Runner:
    def run(images: Images) -> object:
        with torch.inference_mode():
            return classifier(torch.from_numpy(images))

    return run


def _measure(
    runners: dict[tuple[str, str], Runner], precision: str, batch: int, threads: int, rounds: int
) -> list[Sample]:
    """Every form once a round, in an order that changes from round to round."""
    images = np.random.default_rng(0).integers(0, 256, (batch, SIZE, SIZE, 3), dtype=np.uint8)
    for run in runners.values():
        for _ in range(3):
            run(images)
    samples: list[Sample] = []
    order = np.random.default_rng(1)
    keys = list(runners)
    for number in track(range(rounds), f"{precision}, batch {batch}", total=rounds):
        for index in order.permutation(len(keys)):
            started = time.perf_counter()
            runners[keys[index]](images)
            milliseconds = 1e3 * (time.perf_counter() - started)
            model, form = keys[index]
            samples.append(
                Sample(
                    model=model,
                    form=form,
                    precision=precision,
                    batch=batch,
                    threads=threads,
                    round=number,
                    milliseconds=round(milliseconds, 3),
                )
            )
    return samples


if __name__ == "__main__":
    main()
