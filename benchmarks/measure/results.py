"""Rows of results: a subject under a load, with its latencies, and beside the subject it is compared with."""

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Self

import numpy as np

from benchmarks.latency import Latency
from benchmarks.measure.messages import Kind, Opened, Subject
from benchmarks.measure.rounds import Load, Measured
from benchmarks.stages import stage_columns
from lct_deploy.runtime.base import Stages


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Median latency over that of `base` in the same round: its median and quartiles; below 1 is faster."""

    base: str
    median: float
    first_quartile: float
    third_quartile: float

    @classmethod
    def of(cls, measured: Measured, base: Measured) -> Self:
        pairs = zip(measured.turns, base.turns, strict=True)
        ratios = [np.median(own.milliseconds) / np.median(other.milliseconds) for own, other in pairs]
        first, median, third = (round(float(q), 4) for q in np.quantile(ratios, (0.25, 0.5, 0.75)))
        subject = base.worker.subject
        runtime = subject.runtime if subject.kind == "bundle" else subject.kind
        name = f"{subject.bundle.name}, {runtime}" + (f", {subject.precision}" if subject.precision else "")
        return cls(base=name, median=median, first_quartile=first, third_quartile=third)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One subject under one load; where `error` says why, nothing was measured.

    `variation` is the coefficient of variation of the rounds that count; over the tolerance of
    `benchmarks.measure.rounds` it is not `stable`. Memory is the process's peak so far; that of the GPU,
    `preprocess_ms` (of a photograph) and `stages` are None where there is none or nothing tells.
    """

    model: str
    arch: str
    kind: Kind
    runtime: str
    precision: str
    graph: str
    threads: int
    batch: int
    concurrency: int
    pixels: int | None = None
    rounds: int = 0
    inferences: int = 0
    images_per_second: float | None = None
    latency: Latency | None = None
    variation: float | None = None
    stable: bool = False
    preprocess_ms: float | None = None
    stages: Stages = field(default_factory=Stages)
    gpu_mib: float | None = None
    rss_mib: float | None = None
    golden_error: float | None = None
    golden_top1: float | None = None
    ratio: Ratio | None = None
    error: str = ""

    def columns(self) -> dict[str, object]:
        """The row as it stands in a CSV file."""
        ratio = asdict(self.ratio) if self.ratio else dict.fromkeys(one.name for one in fields(Ratio))
        nested = ("latency", "ratio", "stages", "error")
        flat = {name: value for name, value in vars(self).items() if name not in nested}
        parts = {column: getattr(self.stages, name) for column, name in stage_columns().items()}
        beside = {"base" if name == "base" else f"ratio_{name}": value for name, value in ratio.items()}
        return {**flat, **Latency.columns(self.latency), **parts, **beside, "error": self.error}


def result_row(opened: Opened, measured: Measured, base: Measured | None) -> Row:
    """`base`: what it is compared with, unless it is that itself or that has failed."""
    about = _about(opened, measured.worker.subject, measured.load)
    if measured.failure is not None:
        return replace(about, error=str(measured.failure))
    times = np.array([value for turn in measured.counted for value in turn.milliseconds])
    seconds = sum(turn.seconds for turn in measured.counted)
    comparable = base is not None and base.failure is None and base is not measured
    return replace(
        about,
        rounds=len(measured.turns),
        inferences=len(times),
        images_per_second=round(len(times) * measured.load.batch / seconds, 2),
        latency=Latency.of(times),
        variation=round(measured.variation, 4),
        stable=measured.stable,
        preprocess_ms=opened.preprocess_ms,
        stages=measured.turns[-1].stages or Stages(),
        gpu_mib=measured.turns[-1].gpu_mib,
        rss_mib=max(turn.rss_mib for turn in measured.turns),
        golden_error=opened.golden_error,
        golden_top1=opened.golden_top1,
        ratio=Ratio.of(measured, base) if base is not None and comparable else None,
    )


def failed_row(subject: Subject, load: Load, error: str) -> Row:
    """Of a subject that could not be opened."""
    return Row(
        model=subject.bundle.name,
        arch="",
        kind=subject.kind,
        runtime=subject.runtime if subject.kind == "bundle" else subject.kind,
        precision=subject.precision or "",
        graph="",
        threads=subject.threads,
        batch=load.batch,
        concurrency=load.concurrency,
        error=error,
    )


def _about(opened: Opened, subject: Subject, load: Load) -> Row:
    return Row(
        model=subject.bundle.name,
        arch=opened.arch,
        kind=subject.kind,
        runtime=opened.runtime,
        precision=opened.precision,
        graph=_graph(opened, subject, load),
        threads=subject.threads,
        batch=load.batch,
        concurrency=load.concurrency,
        pixels=opened.pixels,
    )


def _graph(opened: Opened, subject: Subject, load: Load) -> str:
    if subject.graph is not None:
        return subject.graph.name
    compiled = opened.compiled_batches
    several = bool(compiled) and load.batch % max(compiled) == 0
    return "compiled" if several or load.batch in compiled else "bundled"
