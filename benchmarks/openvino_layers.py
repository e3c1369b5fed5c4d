"""Where the time of an inference in OpenVINO goes: `python -m benchmarks.openvino_layers`.

Plain and LCT-ResNet50 by turns, every node timed by OpenVINO itself. Convolutions are told apart by stage and
kernel, with the operations that they do; all other nodes by what OpenVINO calls them. Rows go to
benchmarks/results/openvino-layers-MACHINE.csv.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import median
from typing import Annotated, Any

import numpy as np
import onnx
import openvino
import typer

from benchmarks.environment import machine_name
from benchmarks.floors import node_operations
from benchmarks.peers.prepare import prepare
from benchmarks.rows import RESULTS, write_rows
from benchmarks.serving.command import run_command
from lct_deploy.bundle import Bundle, open_bundle
from lct_deploy.cores import available_cores
from lct_deploy.manifest import Precision
from lct_deploy.progress import track
from lct_deploy.runtime.openvino import capabilities, read_graph, settings

ARCHS = ("resnet50", "lct_resnet50")
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8")
BATCHES = (1, 8)
_WARM_UP = 3
_FUSED = "/WithoutBiases"  # what OpenVINO adds to the name of a convolution whose bias it has fused


@dataclass(frozen=True, kw_only=True)
class Row:
    """All nodes of one kind: the median over inferences of what they take together."""

    arch: str
    precision: str
    batch: int
    part: str
    nodes: int
    milliseconds: float
    operations: int  # multiplications and additions, of nodes that keep the name they have in the graph
    threads: int
    inferences: int


class Profiled:
    """A bundle's graph for one batch, with the time of each node."""

    def __init__(self, bundle: Bundle, precision: Precision, batch: int, threads: int) -> None:
        path = bundle.file(bundle.artifact("openvino", precision))
        size = bundle.manifest.input
        graph = read_graph(path)
        graph.reshape([batch, size.height, size.width, 3])
        compiled = openvino.Core().compile_model(graph, "CPU", {**settings(threads), "PERF_COUNT": True})
        self._request = compiled.create_infer_request()
        self._images = np.random.default_rng(0).integers(
            0, 256, (batch, size.height, size.width, 3), np.uint8
        )
        self._operations = node_operations(onnx.load(path))
        self._arch, self._precision, self._batch = bundle.manifest.arch, precision, batch
        self._threads = threads
        self._taken: dict[str, list[float]] = defaultdict(list)  # milliseconds by kind
        self._nodes, self._done = Counter[str](), Counter[str]()
        for _ in range(_WARM_UP):
            self._request.infer({0: self._images})

    def infer(self) -> None:
        self._request.infer({0: self._images})
        taken = defaultdict[str, float](float)
        nodes, done = Counter[str](), Counter[str]()
        for node in self._request.get_profiling_info():
            if seconds := node.real_time.total_seconds():  # 0: a part of another, or done within 1 µs
                name, part = node.node_name.removesuffix(_FUSED), part_of(node)
                taken[part] += 1e3 * seconds
                nodes[part] += 1
                done[part] += self._batch * self._operations.get(name, 0)
        self._nodes |= nodes
        self._done |= done
        for part, milliseconds in taken.items():
            self._taken[part].append(milliseconds)

    def rows(self) -> Iterator[Row]:
        for part, taken in self._taken.items():
            yield Row(
                arch=self._arch,
                precision=self._precision,
                batch=self._batch,
                part=part,
                nodes=self._nodes[part],
                milliseconds=round(median(taken), 4),
                operations=self._done[part],
                threads=self._threads,
                inferences=len(taken),
            )


def part_of(node: Any) -> str:
    """What a node of OpenVINO's profile counts to."""
    if node.node_type != "Convolution":
        return node.node_type
    stage = node.node_name.partition(".")[0]
    if not stage.startswith("layer"):
        return "stem"
    return f"{stage}, {'1x1' if '1x1' in node.exec_type else '3x3'}"


def main(inferences: Annotated[int, typer.Option(min=1, help="Of each network at batch 1.")] = 60) -> None:
    """Profile all precisions that this processor computes in."""
    threads, rows = available_cores(), list[Row]()
    for precision in PRECISIONS:
        if precision == "bf16" and "BF16" not in capabilities():
            continue
        bundles = [open_bundle(prepare(arch, precision).bundle(precision, "openvino")) for arch in ARCHS]
        for batch in BATCHES:
            rows += profile(bundles, precision, batch, threads, max(3 * inferences // (batch + 2), 1))
    write_rows(RESULTS / f"openvino-layers-{machine_name()}.csv", [asdict(row) for row in rows])


def profile(
    bundles: list[Bundle], precision: Precision, batch: int, threads: int, inferences: int
) -> list[Row]:
    """Inferences of all bundles by turns."""
    profiled = [Profiled(bundle, precision, batch, threads) for bundle in bundles]
    for _ in track(range(inferences), f"{precision}, batch {batch}", total=inferences):
        for one in profiled:
            one.infer()
    return [row for one in profiled for row in one.rows()]


if __name__ == "__main__":
    run_command(main)
