"""What attention costs on the CPU: every form of LCT and SE beside the plain network, in one process.

`python -m benchmarks.attention` times each form right before or after the plain network, so that what else
the machine does meets both, and writes every pair to benchmarks/results/attention-MACHINE.csv.
`make report` makes the tables and the plots of all machines.

    default   a plain torch.onnx.export, for int8 with onnxruntime's quantize_static as it comes
    portable  the bundle's graph: one function a block        onnxruntime   `--for onnxruntime`
    stock     `compile` without the op library                library       `compile` with it
    floor     the network's arithmetic at the rate of one convolution: benchmarks.floors
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import ModelProto

from benchmarks.environment import machine_name
from benchmarks.floors import floors, network_operations
from benchmarks.naive import CALIBRATION, calibration_images, naive_graph, quantize_naively
from benchmarks.networks import random_network
from benchmarks.rows import RESULTS, replace_rows
from exporters.functions import with_layer_normalization
from exporters.graph import export_graph
from exporters.host.layout import lay_out
from exporters.quantization.calibration import calibrate
from exporters.quantization.histogram import DEFAULT_METHOD
from exporters.quantization.qdq import quantize
from lct_deploy.cores import available_cores
from lct_deploy.kernels.cpu import op_library
from lct_deploy.manifest import Precision
from lct_deploy.models import ResNet
from lct_deploy.models.classifier import ImageClassifier
from lct_deploy.preprocessing import evaluation_preprocessing
from lct_deploy.progress import track

SIZE = 224
PREPROCESSING = evaluation_preprocessing(SIZE)
PLAIN = "resnet50"
MODELS = (PLAIN, "lct_resnet50", "se_resnet50")
COMPILED = {"stock": False, "library": True}  # what `compile` makes, and whether with our op library
SELDOM = 4  # other forms are timed in each fourth round only: their ratios are far from one

Images = NDArray[np.uint8]
Runner = Callable[[Images], object]


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A form of a network, and the plain network that it is timed beside; a floor stands alone."""

    model: str
    form: str
    run: Runner
    base: Runner | None
    scale: float = 1.0  # of its time: to that of the whole network's arithmetic
    period: int = SELDOM  # rounds from one of its turns to the next


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two inferences, one right after the other; `base_milliseconds` is the plain network's."""

    model: str
    form: str
    precision: str
    batch: int
    threads: int
    round: int
    milliseconds: float
    base_milliseconds: float | None


def main() -> None:
    arguments = _arguments()
    threads = available_cores()
    torch.set_num_threads(threads)
    networks = {arch: random_network(arch) for arch in MODELS}
    pairs: list[Pair] = []
    with tempfile.TemporaryDirectory() as directory:
        for precision in arguments.precision:
            graphs = {
                arch: _graphs(network, precision, Path(directory)) for arch, network in networks.items()
            }
            for batch in arguments.batch:
                rounds = max(3 * arguments.rounds // (batch + 2), 12)
                # Apart: torch's threads spin after their work, on the cores of whoever comes next.
                for contestants in (
                    _sessions(graphs, precision, batch, threads),
                    _torch_networks(networks, precision),
                    _floors(graphs[PLAIN]["portable"], precision, batch, threads),
                ):
                    pairs += measure(list(contestants), precision, batch, threads, rounds)
    replace_rows(arguments.output, [asdict(pair) for pair in pairs], by=("precision", "batch"))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--precision", nargs="+", default=["fp32", "int8"], choices=["fp32", "int8"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--rounds", type=int, default=120, help="at batch 1; fewer at larger ones")
    parser.add_argument("--output", type=Path, default=RESULTS / f"attention-{machine_name()}.csv")
    return parser.parse_args()


def _graphs(network: ResNet, precision: Precision, directory: Path) -> dict[str, ModelProto]:
    """The graphs that a bundle could hold, by form."""
    portable = export_graph(network, PREPROCESSING, metadata={}).model
    naive = naive_graph(network, PREPROCESSING)
    if precision == "int8":
        return {
            "default": quantize_naively(naive, PREPROCESSING, directory),
            "portable": _quantize(portable),
            "onnxruntime": _quantize(with_layer_normalization(portable)),
        }
    return {"default": naive, "portable": portable, "onnxruntime": with_layer_normalization(portable)}


def _quantize(model: ModelProto) -> ModelProto:
    batches = np.split(calibration_images(PREPROCESSING), CALIBRATION // 4)
    return quantize(model, calibrate(model, batches, DEFAULT_METHOD, total=len(batches)), "onnxruntime")


def _sessions(
    graphs: dict[str, dict[str, ModelProto]], precision: Precision, batch: int, threads: int
) -> Iterator[Contestant]:
    plain = lay_out(graphs[PLAIN]["portable"], precision, batch=batch, library=False)
    base = session(plain.model, threads)
    for arch in MODELS[1:]:
        forms = dict(graphs[arch])
        for form, library in COMPILED.items():
            if op_library() is not None or not library:
                forms[form] = lay_out(forms["portable"], precision, batch=batch, library=library).model
        for form, graph in forms.items():
            yield Contestant(
                model=arch,
                form=form,
                run=session(graph, threads),
                base=base,
                period=1 if form in COMPILED else SELDOM,
            )


def _torch_networks(networks: dict[str, ResNet], precision: Precision) -> Iterator[Contestant]:
    if precision != "fp32":
        return
    for form, prepare in {"torch eager": _torch, "torch compile": _torch_compiled}.items():
        base = prepare(_classifier(networks[PLAIN]))
        for arch in MODELS[1:]:
            yield Contestant(model=arch, form=form, run=prepare(_classifier(networks[arch])), base=base)


def _classifier(network: ResNet) -> ImageClassifier:
    classifier = ImageClassifier(network, PREPROCESSING).eval()
    classifier.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return classifier


def _floors(plain: ModelProto, precision: Precision, batch: int, threads: int) -> Iterator[Contestant]:
    """The time that the network's arithmetic would take at the rate of one convolution."""
    operations = batch * network_operations(plain)
    for floor in floors(precision, batch, threads):
        yield Contestant(
            model="floor",
            form=floor.name,
            run=lambda _, floor=floor: floor.run(),
            base=None,
            scale=operations / floor.operations,
        )


def session(model: ModelProto, threads: int) -> Runner:
    """A graph in onnxruntime, beside others in this process."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # The sessions lie in one process: their threads must not spin while another is timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if library := op_library():
        options.register_custom_ops_library(str(library))
    opened = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    def run(images: Images) -> object:
        return opened.run(["logits"], {"image": images})

    return run


def _torch(classifier: Callable[[torch.Tensor], torch.Tensor]) -> Runner:
    def run(images: Images) -> object:
        with torch.inference_mode():
            return classifier(torch.from_numpy(images))

    return run


def _torch_compiled(classifier: ImageClassifier) -> Runner:
    return _torch(torch.compile(classifier))


def measure(
    contestants: list[Contestant], precision: str, batch: int, threads: int, rounds: int
) -> list[Pair]:
    """Every contestant beside its base, in an order that changes from round to round."""
    images = np.random.default_rng(0).integers(0, 256, (batch, SIZE, SIZE, 3), dtype=np.uint8)
    for contestant in contestants:
        for _ in range(3):
            contestant.run(images)
    order = np.random.default_rng(1)
    pairs: list[Pair] = []
    for number in track(range(rounds), f"{precision}, batch {batch}", total=rounds):
        due = [c for c in contestants if number % c.period == 0]
        for index in order.permutation(len(due)):
            contestant = due[index]
            runners = [contestant.run, *([contestant.base] if contestant.base else [])]
            first, *second = _timed(runners, images, backwards=bool(order.integers(2)))
            pairs.append(
                Pair(
                    model=contestant.model,
                    form=contestant.form,
                    precision=precision,
                    batch=batch,
                    threads=threads,
                    round=number,
                    milliseconds=round(first * contestant.scale, 3),
                    base_milliseconds=round(second[0], 3) if second else None,
                )
            )
    return pairs


def _timed(runners: Iterable[Runner], images: Images, *, backwards: bool) -> list[float]:
    """Milliseconds of each runner, run one after the other, the last first where asked."""
    ordered = list(runners)[:: -1 if backwards else 1]
    times: list[float] = []
    for run in ordered:
        started = time.perf_counter()
        run(images)
        times.append(1e3 * (time.perf_counter() - started))
    return times[:: -1 if backwards else 1]


if __name__ == "__main__":
    main()
