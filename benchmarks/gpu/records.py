"""Rows of the two result files, and the lines in which a section's process hands them over."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.plan import KERNEL, Case, KernelCase, groups, kernel_cases
from benchmarks.stages import stage_columns
from lct_deploy.errors import DeviceError, LctDeployError, RuntimeUnavailableError
from lct_deploy.runtime.base import Stages

Key = dict[str, Any]  # the columns that say which case it is


@dataclass(frozen=True, kw_only=True)
class Times:
    """Milliseconds of one inference or launch over several rounds; all 0 where it was not timed."""

    rounds: int = 0
    median_ms: float = 0.0
    p10_ms: float = 0.0
    p90_ms: float = 0.0

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> "Times":
        low, middle, high = (round(float(x), 5) for x in np.percentile(milliseconds, (10, 50, 90)))
        return cls(rounds=len(milliseconds), median_ms=middle, p10_ms=low, p90_ms=high)


@dataclass(frozen=True, kw_only=True)
class Result:
    """Of a network: parity with PyTorch's float32 logits, and times `from` the host or on the device.

    `host`: from images in the host's memory to logits there. `device`: from images on the GPU to logits
    on it. `status` is "ok", or why a figure is missing or not to be trusted. `gpu_mib` is what it has
    taken of the GPU's memory, `stages` are the parts of `host`.
    """

    status: str
    max_rel_error: float | None = None
    min_cosine: float | None = None
    host: Times = Times()
    device: Times = Times()
    stages: Stages = field(default_factory=Stages)
    gpu_mib: float | None = None


@dataclass(frozen=True, kw_only=True)
class KernelResult:
    """Of one launch: bytes that it cannot do without, what that makes a second, and what a copy makes."""

    status: str
    bytes_floor: int = 0
    times: Times = Times()
    gigabytes_per_second: float = 0.0
    copy_gigabytes_per_second: float = 0.0


def row(case: Case | KernelCase, result: Result | KernelResult) -> dict[str, Any]:
    """A line of a result file."""
    columns: dict[str, Any] = asdict(case)
    for name, value in asdict(result).items():
        if name == "stages":
            columns |= {column: value[stage] for column, stage in stage_columns().items()}
        elif isinstance(value, dict):
            columns |= {f"{name}_{key}": part for key, part in value.items()}
        else:
            columns[name] = value
    if isinstance(case, Case) and isinstance(result, Result):
        milliseconds = result.host.median_ms  # what every runtime has
        columns["images_per_second"] = round(1e3 * case.batch / milliseconds, 1) if milliseconds else None
    if isinstance(result, KernelResult) and result.copy_gigabytes_per_second:
        columns["share_of_copy"] = round(result.gigabytes_per_second / result.copy_gigabytes_per_second, 3)
    elif isinstance(result, KernelResult):
        columns["share_of_copy"] = None
    return columns


def beside_plain(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """With `times_plain`, a network's time in those of the one without attention that ran in turn with it.

    On the device where the runtime tells it; None unless both are "ok".
    """
    rows = list(rows)
    good = [line for line in rows if line["status"] == "ok"]
    plain = {_turn(line): _milliseconds(line) for line in good if line["attention"] == "none"}
    return [{**line, "times_plain": _ratio(line, plain)} for line in rows]


def _ratio(line: dict[str, Any], plain: dict[tuple[Any, ...], float]) -> float | None:
    base = plain.get(_turn(line))
    return round(_milliseconds(line) / base, 3) if line["status"] == "ok" and base else None


def _turn(line: dict[str, Any]) -> tuple[Any, ...]:
    return line["runtime"], line["precision"], line["batch"]


def _milliseconds(line: dict[str, Any]) -> float:
    return line["device_median_ms"] or line["host_median_ms"]


def planned(section: str) -> list[Case] | list[KernelCase]:
    """Every case that a section is to report."""
    if section == KERNEL:
        return kernel_cases()
    return [case for group in groups(section) for case in group.cases]


def append(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Hand rows over at once: the process may not live to hand them over later."""
    with path.open("a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(line) + "\n" for line in rows)


def handed_over(path: Path) -> list[dict[str, Any]]:
    """What a section's process has handed over; a last line that it did not finish does not count."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def completed(section: str, rows: list[dict[str, Any]], why: str) -> list[dict[str, Any]]:
    """Rows for all that was planned: those handed over, and for the others why there is none."""
    cases = planned(section)
    names = list(asdict(cases[0]))
    found = {tuple(line[name] for name in names): line for line in rows}
    absent = KernelResult(status=why) if section == KERNEL else Result(status=why)
    return [found.get(tuple(asdict(case).values())) or row(case, absent) for case in cases]


def status_of(error: BaseException) -> str:
    """An error as a status: a word on the kind, then its first line."""
    if isinstance(error, ModuleNotFoundError):
        return f"not installed: {error.name}"
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, RuntimeUnavailableError):
        return f"not available: {text}"
    if isinstance(error, DeviceError) or "out of memory" in text.lower():
        return f"failed on the GPU: {text}"
    return f"failed: {text}" if isinstance(error, LctDeployError) else f"{type(error).__name__}: {text}"
