"""What attention costs on the CPU: every form of LCT and SE beside the plain network, in one process.

`python -m benchmarks.attention` times each form right before or after the plain network, so that what else
the machine does meets both, and writes every pair to benchmarks/results/attention-MACHINE.csv. Where a
process puts a graph's weights in memory is worth one per cent, and hangs on which graph it opens first:
so several processes one after another open all, in orders of their own, and their pairs count together.
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
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
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

Subject = tuple[str, str]  # a network's architecture and its form
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
    period: int = 1  # rounds from one of its turns to the next


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all contestants run with, and how often."""

    precision: Precision
    batch: int
    threads: int
    rounds: int


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
    networks = {arch: random_network(arch) for arch in MODELS}
    pairs: list[Pair] = []
    with tempfile.TemporaryDirectory() as name:
        for precision in arguments.precision:
            graphs = {arch: _graphs(network, precision, Path(name)) for arch, network in networks.items()}
            for batch in arguments.batch:
                rounds = max(3 * arguments.rounds // (batch + 2), SELDOM)
                setting = Setting(precision=precision, batch=batch, threads=threads, rounds=rounds)
                files = _save(graphs, setting, Path(name))
                lowest = list(_floors(graphs[PLAIN]["portable"], setting))
                for process in range(arguments.processes):
                    pairs += _apart(_measure_graphs, files, setting, process)
                    # In between: a machine may be faster or slower for minutes.
                    pairs += measure(lowest, replace(setting, rounds=SELDOM), first=process * SELDOM)
                if precision == "fp32":
                    pairs += _apart(_measure_torch, setting)
    replace_rows(arguments.output, [asdict(pair) for pair in pairs], by=("precision", "batch"))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--precision", nargs="+", default=["fp32", "int8"], choices=["fp32", "int8"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--processes", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=20, help="of each, at batch 1; fewer at larger ones")
    parser.add_argument("--output", type=Path, default=RESULTS / f"attention-{machine_name()}.csv")
    return parser.parse_args()


def _apart(function: Callable[..., list[Pair]], *arguments: object) -> list[Pair]:
    """What the function measures in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


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


def _save(graphs: dict[str, dict[str, ModelProto]], setting: Setting, directory: Path) -> dict[Subject, Path]:
    """A file of every graph, those that `compile` makes among them, and of the plain network's best."""
    files: dict[Subject, Path] = {}
    for arch in MODELS:
        forms = {} if arch == PLAIN else dict(graphs[arch])
        for form, library in COMPILED.items():
            if not library or (op_library() is not None and arch != PLAIN):
                source = graphs[arch]["portable"]
                host = lay_out(source, setting.precision, batch=setting.batch, library=library)
                forms[form] = host.model
        for form, graph in forms.items():
            files[arch, form] = directory / f"{arch}-{form}.onnx"
            files[arch, form].write_bytes(graph.SerializeToString())
    return files


def _measure_graphs(files: dict[Subject, Path], setting: Setting, process: int) -> list[Pair]:
    subjects = list(files)
    np.random.default_rng(process).shuffle(subjects)
    runners = {subject: session(files[subject].read_bytes(), setting.threads) for subject in subjects}
    base = runners.pop((PLAIN, "stock"))
    contestants = [
        Contestant(model=arch, form=form, run=run, base=base, period=1 if form in COMPILED else SELDOM)
        for (arch, form), run in runners.items()
    ]
    return measure(contestants, setting, first=process * setting.rounds)


def _measure_torch(setting: Setting) -> list[Pair]:
    torch.set_num_threads(setting.threads)
    contestants: list[Contestant] = []
    for form, prepare in {"torch eager": _torch, "torch compile": _torch_compiled}.items():
        base, *others = (prepare(_classifier(random_network(arch))) for arch in MODELS)
        contestants += [
            Contestant(model=arch, form=form, run=run, base=base)
            for arch, run in zip(MODELS[1:], others, strict=True)
        ]
    return measure(contestants, setting)


def _classifier(network: ResNet) -> ImageClassifier:
    classifier = ImageClassifier(network, PREPROCESSING).eval()
    classifier.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return classifier


def _floors(plain: ModelProto, setting: Setting) -> Iterator[Contestant]:
    """The time that the network's arithmetic would take at the rate of one convolution."""
    operations = setting.batch * network_operations(plain)
    for floor in floors(setting.precision, setting.batch, setting.threads):
        yield Contestant(
            model="floor",
            form=floor.name,
            run=lambda _, floor=floor: floor.run(),
            base=None,
            scale=operations / floor.operations,
        )


def session(model: bytes, threads: int) -> Runner:
    """A serialised graph in onnxruntime, beside others in this process."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # The sessions lie in one process: their threads must not spin while another is timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if library := op_library():
        options.register_custom_ops_library(str(library))
    opened = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

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


def measure(contestants: list[Contestant], setting: Setting, *, first: int = 0) -> list[Pair]:
    """Every contestant beside its base, in an order of each round, which are numbered from `first`."""
    images = np.random.default_rng(0).integers(0, 256, (setting.batch, SIZE, SIZE, 3), dtype=np.uint8)
    for contestant in contestants:
        for _ in range(3):
            contestant.run(images)
    order = np.random.default_rng(first + 1)
    pairs: list[Pair] = []
    what = f"{setting.precision}, batch {setting.batch}"
    for number in track(range(setting.rounds), what, total=setting.rounds):
        due = [c for c in contestants if number % c.period == 0]
        for index in order.permutation(len(due)):
            contestant = due[index]
            runners = [contestant.run, *([contestant.base] if contestant.base else [])]
            own, *base = _timed(runners, images, backwards=bool(order.integers(2)))
            pairs.append(
                Pair(
                    model=contestant.model,
                    form=contestant.form,
                    precision=setting.precision,
                    batch=setting.batch,
                    threads=setting.threads,
                    round=first + number,
                    milliseconds=round(own * contestant.scale, 3),
                    base_milliseconds=round(base[0], 3) if base else None,
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
