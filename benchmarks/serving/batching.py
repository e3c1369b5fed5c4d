"""Whether images side by side are faster than one after the other: what `max_batch` should be by default.

`python -m benchmarks.serving.batching BUNDLE...` runs each bundle's graph in batches of several sizes, one
size right after the other in every round, with a thread a core as an engine does, and without a server
around it. Rows go to benchmarks/results/serving-batching-MACHINE.csv; the printed ratio is images a second
beside those of batches of one, median and quartiles of the rounds.
"""

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.environment import machine_name
from benchmarks.quartiles import Quartiles
from benchmarks.rows import RESULTS, write_rows
from benchmarks.serving.command import run_command
from lct_deploy.bundle import Bundle, open_bundle
from lct_deploy.progress import track
from lct_deploy.runtime import Runtime, RuntimeOptions, open_bundled

SIZES = (1, 2, 4, 8, 16)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One size in one round."""

    model: str
    arch: str
    precision: str
    graph: str  # the bundle's, or compiled for this size
    pixels: int
    batch: int
    round: int
    images_per_second: float
    times_one: float  # beside batches of one in the same round


def batching(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles of the networks to compare.")],
    rounds: Annotated[int, typer.Option(help="Times that every size is measured.")] = 9,
    seconds: Annotated[float, typer.Option(help="Of one size in one round.")] = 0.5,
) -> None:
    """Measure every bundle, one after the other."""
    opened = [open_bundle(path) for path in bundles]
    jobs = [(bundle, number) for bundle in opened for number in range(rounds)]
    rows = [
        row
        for bundle, number in track(jobs, "measuring", total=len(jobs))
        for row in measure(bundle, number, seconds)
    ]
    write_rows(RESULTS / f"serving-batching-{machine_name()}.csv", [asdict(row) for row in rows])
    for line in summary(rows):
        print(line)


def measure(bundle: Bundle, number: int, seconds: float) -> Iterator[Row]:
    """All sizes in turn, with a runtime of this round's own."""
    with closing(open_bundled(bundle, "onnxruntime", RuntimeOptions())) as runtime:
        spec = runtime.spec
        for size in SIZES:  # the first inference of a size allocates
            images_per_second(runtime, size, 0)
        one = 0.0
        for size in SIZES:
            found = images_per_second(runtime, size, seconds)
            one = one or found
            yield Row(
                model=bundle.manifest.name,
                arch=bundle.manifest.arch,
                precision=spec.precision,
                graph="compiled" if size in spec.compiled_batches else "bundled",
                pixels=spec.height,
                batch=size,
                round=number,
                images_per_second=round(found, 2),
                times_one=round(found / one, 4),
            )


def images_per_second(runtime: Runtime, size: int, seconds: float) -> float:
    """Of inferences one after the other, at least three of them."""
    spec = runtime.spec
    images = np.random.default_rng(0).integers(0, 256, (size, spec.height, spec.width, 3), np.uint8)
    began, done = time.perf_counter(), 0
    while done < 3 or time.perf_counter() - began < seconds:
        runtime.infer(images)
        done += 1
    return done * size / (time.perf_counter() - began)


def summary(rows: list[Row]) -> Iterator[str]:
    """A line for each size of each model."""
    for model, batch in dict.fromkeys((row.model, row.batch) for row in rows):
        of_size = [row for row in rows if (row.model, row.batch) == (model, batch)]
        times_one = Quartiles.of(row.times_one for row in of_size)
        speed = np.median([row.images_per_second for row in of_size])
        yield f"{model:24} batch {batch:3} {speed:9.1f} images/s  {times_one}"


if __name__ == "__main__":
    run_command(batching)
