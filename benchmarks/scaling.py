"""How cost grows with the work: `python -m benchmarks.scaling`.

    batch        images in one inference of LCT-ResNet50
    resolution   pixels of its input
    depth        LCT-ResNets of 18 to 152 layers, by their multiply-adds
    callers      at once, of a server of the demo bundle
    image        pixels of the files that one caller sends to it

Cost is milliseconds at the median: of an inference, or of a request. Printed is the exponent
(benchmarks.growth) of each. Rows go to benchmarks/results/scaling-MACHINE.csv, in the place of those of the
same dimension.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from benchmarks.environment import machine_name
from benchmarks.growth import exponent
from benchmarks.measure.http import LoadPlan, load_server
from benchmarks.measure.messages import Subject
from benchmarks.measure.rounds import Load, Plan
from benchmarks.measure.run import run
from benchmarks.peers.prepare import prepare_bundle
from benchmarks.rows import RESULTS, replace_rows
from benchmarks.serving.command import run_command
from benchmarks.serving.servers import Server, lct_deploy_serve
from lct_deploy.architecture import model_config
from lct_deploy.cores import available_cores
from lct_deploy.cost import model_cost
from lct_deploy.errors import UsageError

ARCH = "lct_resnet50"
BATCHES = (1, 2, 4, 8, 16, 32, 64)
SIDES = (96, 160, 224, 320, 448)
DEPTHS = (18, 34, 50, 101, 152)
CALLERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
FILES = ((365, 274), (730, 548), (1155, 866), (2000, 1500), (4000, 3000))  # 0.1 to 12 megapixels


@dataclass(frozen=True, kw_only=True)
class Row:
    """One point: `work` in units of its dimension, `milliseconds` at the median, and a second figure."""

    dimension: str
    work: float
    milliseconds: float
    per_second: float  # images, or answers
    stable: bool


def main(
    dimension: Annotated[str, typer.Option(help="With commas.")] = "batch,resolution,depth,callers,image",
    seconds: Annotated[float, typer.Option(min=0.1, help="Of a turn or a load.")] = 2.0,
) -> None:
    """Measure every dimension and print its exponent."""
    for name in dimension.split(","):
        if name not in _DIMENSIONS:
            raise UsageError(f"unknown dimension {name!r}", hint=f"dimensions are {', '.join(_DIMENSIONS)}")
        found = list(_DIMENSIONS[name](seconds))
        whole, last = (
            exponent([row.work for row in part], [row.milliseconds for row in part])
            for part in (found, found[-2:])
        )
        print(f"{name:12} exponent {whole:.2f}, in the last step {last:.2f}")
        path = RESULTS / f"scaling-{machine_name()}.csv"
        replace_rows(path, [asdict(row) for row in found], by=("dimension",))


def _batch(seconds: float) -> Iterator[Row]:
    subject = Subject(bundle=prepare_bundle(ARCH, "fp32").bundle("fp32"), threads=available_cores())
    yield from _inferences("batch", subject, {batch: batch for batch in BATCHES}, seconds)


def _resolution(seconds: float) -> Iterator[Row]:
    for side in SIDES:
        bundle = prepare_bundle(ARCH, "fp32", size=side).bundle("fp32")
        subject = Subject(bundle=bundle, threads=available_cores())
        yield from _inferences("resolution", subject, {1: side**2}, seconds)


def _depth(seconds: float) -> Iterator[Row]:
    for depth in DEPTHS:
        arch = f"lct_resnet{depth}"
        subject = Subject(bundle=prepare_bundle(arch, "fp32").bundle("fp32"), threads=available_cores())
        work = model_cost(model_config(arch)).multiply_adds
        yield from _inferences("depth", subject, {1: work}, seconds)


def _inferences(dimension: str, subject: Subject, work: dict[int, float], seconds: float) -> Iterator[Row]:
    """Of each batch in `work` a point."""
    loads = tuple(Load(batch=batch, concurrency=1) for batch in work)
    for row in run([subject], Plan(loads=loads, seconds=seconds, most=15), base=subject):
        if row.latency is not None and row.images_per_second is not None:
            yield Row(
                dimension=dimension,
                work=work[row.batch],
                milliseconds=row.latency.p50,
                per_second=row.images_per_second,
                stable=row.stable,
            )


def _callers(seconds: float) -> Iterator[Row]:
    yield from _requests("callers", ((500, 375),), CALLERS, seconds)


def _image(seconds: float) -> Iterator[Row]:
    yield from _requests("image", FILES, (1,), seconds)


def _requests(
    dimension: str, sizes: tuple[tuple[int, int], ...], callers: tuple[int, ...], seconds: float
) -> Iterator[Row]:
    """Of a server of a small network, whose requests cost the server about as much as the network."""
    bundle = prepare_bundle("lct_resnet20", "fp32", size=28).bundle("fp32")
    with Server(lct_deploy_serve(str(bundle))) as server:
        plan = LoadPlan(
            url=f"{server.url()}/v1/classify", sizes=sizes, callers=callers, rates=(), seconds=seconds
        )
        for row in load_server(plan):
            latency = row.figures.latency
            if latency is not None and row.callers is not None:
                yield Row(
                    dimension=dimension,
                    work=row.callers if dimension == "callers" else row.width * row.height,
                    milliseconds=latency.p50,
                    per_second=row.figures.throughput,
                    stable=row.holds,
                )


_DIMENSIONS: dict[str, Callable[[float], Iterator[Row]]] = {
    "batch": _batch,
    "resolution": _resolution,
    "depth": _depth,
    "callers": _callers,
    "image": _image,
}


if __name__ == "__main__":
    run_command(main)
