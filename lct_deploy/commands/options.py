"""Options that several commands have, and what their texts mean."""

import math
import os
import re
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from lct_deploy.architecture import FEATURES, FeatureName
from lct_deploy.errors import UsageError
from lct_deploy.manifest import Precision

if TYPE_CHECKING:
    from lct_deploy.runtime import RuntimeOptions

RuntimeOption = Annotated[str, typer.Option(help="onnxruntime, openvino, tensorrt or tensorrt-rtx.")]
ProviderOption = Annotated[
    str | None,
    typer.Option(envvar="LCT_PROVIDER", help="onnxruntime's: cpu, cuda or tensorrt; default: cpu."),
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(help="fp32, tf32, fp16, bf16, int8 or fp8; default: what the bundle was exported for."),
]
DataOption = Annotated[
    str,
    typer.Option(
        help="fashion-mnist, a folder of IDX files, an ImageFolder tree, or its folders of classes."
    ),
]
UnreadableOption = Annotated[
    int, typer.Option(min=0, help="Images that may be left out because they cannot be read.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout.")]


def given(**options: Any) -> dict[str, Any]:
    """Those that the user set; the rest keep the default of whatever takes them."""
    return {name: value for name, value in options.items() if value is not None}


def parse_counts(text: str, what: str) -> tuple[int, ...]:
    """Whole numbers from 1 on, as 1,8,32; raises UsageError for others, saying `what` they stand for."""
    parts = text.split(",")
    if not all(part.strip().isascii() and part.strip().isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"{text!r} is not a list of {what} such as 1,8")
    return tuple(int(part) for part in parts)


def parse_cores(text: str | None) -> tuple[int, ...]:
    """Numbers of cores that this process may use, as 0,1; none of None."""
    if text is None:
        return ()
    parts = text.split(",")
    if not all(part.strip().isascii() and part.strip().isdigit() for part in parts):
        raise UsageError(f"{text!r} is not a list of cores such as 0,1")
    cores, usable = tuple(int(part) for part in parts), os.sched_getaffinity(0)
    if not usable.issuperset(cores):
        raise UsageError(
            f"core {next(core for core in cores if core not in usable)} is not one that this process may use",
            hint=f"cores here are {', '.join(map(str, sorted(usable)))}",
        )
    return cores


def parse_rates(text: str | None) -> tuple[float, ...] | None:
    """Requests a second, as 10,20; raises UsageError for other texts."""
    if text is None:
        return None
    try:
        rates = tuple(float(part) for part in text.split(","))
    except ValueError:
        rates = (0.0,)
    if not all(0 < rate < math.inf for rate in rates):
        raise UsageError(f"{text!r} is not a list of requests a second such as 10,20")
    return rates


def parse_sizes(text: str) -> tuple[tuple[int, int], ...]:
    """Widths and heights, as 500x375,4000x3000."""
    sizes = [re.fullmatch(r"\s*([1-9]\d{0,4})x([1-9]\d{0,4})\s*", part, re.ASCII) for part in text.split(",")]
    if None in sizes:
        raise UsageError(f"{text!r} is not a list of sizes such as 500x375,4000x3000")
    return tuple((int(found[1]), int(found[2])) for found in sizes if found)


def parse_features(text: str) -> tuple[FeatureName, ...]:
    """Names of a backbone's maps, each once, as c2,c3,c4,c5."""
    names = tuple(name.strip() for name in text.split(","))
    if not set(names) <= set(FEATURES) or len(set(names)) < len(names):
        raise UsageError(f"{text!r} is not a list of maps, each once, such as {','.join(FEATURES)}")
    return cast("tuple[FeatureName, ...]", names)


def parse_numbers(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"{text!r} is not three numbers such as 0.485,0.456,0.406") from error


def parse_precision(name: str | None) -> Precision | None:
    if name is not None and name not in get_args(Precision):
        known = ", ".join(get_args(Precision))
        raise UsageError(f"unknown precision {name!r}", hint=f"precisions are {known}")
    return cast("Precision | None", name)


def parse_runtime_options(provider: str | None) -> "RuntimeOptions":
    from lct_deploy.runtime.base import ProviderName, RuntimeOptions

    if provider is None:
        return RuntimeOptions()
    if provider not in get_args(ProviderName):
        known = ", ".join(get_args(ProviderName))
        raise UsageError(f"unknown provider {provider!r}", hint=f"providers are {known}")
    return RuntimeOptions(provider=cast("ProviderName", provider))
