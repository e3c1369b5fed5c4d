"""What attention costs in OpenVINO, by form and precision: `python -m benchmarks.openvino_forms`.

Every form runs right before or after the plain network in OpenVINO, as in benchmarks.attention, whose columns
the rows have: benchmarks/results/openvino-MACHINE.csv. The medians of the pairs' ratios are printed.

    openvino      what `--for openvino` makes              dynamic     the same, compiled for any batch
    inlined       the function's body in its place
    onnxruntime   int8: Q/DQ as for onnxruntime            tensorrt    int8: Q/DQ as for TensorRT
    compiled      onnxruntime itself on what `compile` lays out, the plain network too
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from statistics import median

import numpy as np
import openvino
from onnx import ModelProto
from onnx.inliner import inline_local_functions

from benchmarks.attention import PREPROCESSING, Contestant, Images, Pair, Runner, Setting, measure, session
from benchmarks.environment import machine_name
from benchmarks.naive import CALIBRATION, calibration_images
from benchmarks.networks import random_network
from benchmarks.rows import RESULTS, write_rows
from exporters.graph import export_graph
from exporters.half import to_half
from exporters.host.layout import lay_out
from exporters.openvino import spell_for_openvino
from exporters.quantization.calibration import calibrate
from exporters.quantization.histogram import DEFAULT_METHOD
from exporters.quantization.placement import Target
from exporters.quantization.qdq import quantize
from lct_deploy.cores import available_cores
from lct_deploy.kernels.cpu import op_library
from lct_deploy.manifest import Precision
from lct_deploy.runtime.openvino import compile_graph, read_graph, settings

PLAIN, MODEL = "resnet50", "lct_resnet50"
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8")

Lowered = dict[Target, ModelProto]  # a network in a precision, as each runtime wants it


def main() -> None:
    arguments = _arguments()
    portable = {
        arch: export_graph(random_network(arch), PREPROCESSING, metadata={}).model for arch in (PLAIN, MODEL)
    }
    pairs: list[Pair] = []
    for precision in arguments.precision:
        plain, model = (_lower(portable[arch], precision) for arch in (PLAIN, MODEL))
        for batch in arguments.batch:
            contestants = list(_contestants(plain, model, precision, batch, arguments.threads))
            rounds = max(3 * arguments.rounds // (batch + 2), 8)
            pairs += measure(
                contestants,
                Setting(precision=precision, batch=batch, threads=arguments.threads, rounds=rounds),
            )
            write_rows(arguments.output, [asdict(pair) for pair in pairs])
    _print(pairs)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--precision", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--rounds", type=int, default=40, help="at batch 1; fewer at larger ones")
    parser.add_argument("--output", type=Path, default=RESULTS / f"openvino-{machine_name()}.csv")
    return parser.parse_args()


def _lower(model: ModelProto, precision: Precision) -> Lowered:
    if precision == "fp32":
        return {"openvino": model, "onnxruntime": model}
    if precision == "bf16":
        return {"openvino": to_half(model, "bf16")}
    batches = np.split(calibration_images(PREPROCESSING), CALIBRATION // 4)
    calibration = calibrate(model, batches, DEFAULT_METHOD, total=len(batches))
    targets: tuple[Target, ...] = ("openvino", "onnxruntime", "tensorrt")
    return {target: quantize(model, calibration, target) for target in targets}


def _contestants(
    plain: Lowered, model: Lowered, precision: Precision, batch: int, threads: int
) -> Iterator[Contestant]:
    base = _compiled(spell_for_openvino(plain["openvino"]), batch, threads)
    graph = spell_for_openvino(model["openvino"])
    runs: dict[str, Runner] = {
        "openvino": _compiled(graph, batch, threads),
        "dynamic": _compiled(graph, None, threads),
        "inlined": _compiled(inline_local_functions(model["openvino"]), batch, threads),
    }
    if precision == "int8":
        runs["onnxruntime"] = _compiled(inline_local_functions(model["onnxruntime"]), batch, threads)
        runs["tensorrt"] = _compiled(spell_for_openvino(model["tensorrt"]), batch, threads)
    for form, run in runs.items():
        yield Contestant(model=MODEL, form=form, run=run, base=base, period=1)
    if precision != "bf16":
        for arch, graphs in ((PLAIN, plain), (MODEL, model)):
            run = _laid_out(graphs["onnxruntime"], precision, batch, threads)
            yield Contestant(model=arch, form="compiled", run=run, base=base, period=1)


def _compiled(model: ModelProto, batch: int | None, threads: int) -> Runner:
    """A graph in OpenVINO; `batch` None is any."""
    graph = read_graph(BytesIO(model.SerializeToString()))
    compiled = (
        compile_graph(graph, batch, threads=threads)
        if batch
        else openvino.Core().compile_model(graph, "CPU", settings(threads))
    )
    request = compiled.create_infer_request()
    run: Callable[[Images], object] = lambda images: request.infer({0: images})  # noqa: E731
    return run


def _laid_out(model: ModelProto, precision: Precision, batch: int, threads: int) -> Runner:
    library = op_library() is not None
    host = lay_out(model, precision, batch=batch, library=library)
    return session(host.model.SerializeToString(), threads)


def _print(pairs: list[Pair]) -> None:
    """The median of each form's ratios and times."""
    groups: dict[tuple[str, int, str, str], list[Pair]] = {}
    for pair in pairs:
        groups.setdefault((pair.precision, pair.batch, pair.model, pair.form), []).append(pair)
    for (precision, batch, model, form), found in groups.items():
        ratio = median(pair.milliseconds / (pair.base_milliseconds or 1) for pair in found)
        milliseconds = median(pair.milliseconds for pair in found)
        print(f"{precision} batch {batch}: {model} {form}: {ratio:.3f}, {milliseconds:.2f} ms")


if __name__ == "__main__":
    main()
