"""What an engine is asked to be."""

import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from lct_deploy.errors import UsageError
from lct_deploy.manifest import Precision, Profile

Attention = Literal["native", "plugin"]


class BuildOptions(BaseModel):
    """How to build an engine.

    `gpus` are those that a TensorRT-RTX engine is for, as `sm89`; TensorRT builds for the one that it runs
    on. `opt_level` None is the builder's own. `timing_cache` need not exist yet.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: Precision = "fp32"
    profiles: tuple[Profile, ...] = (Profile(min=1, opt=8, max=64),)
    gpus: tuple[str, ...] = ()
    timing_cache: Path | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    opt_level: int | None = Field(default=None, ge=0, le=5)
    attention: Attention = "native"

    def described(self) -> dict[str, str]:
        """What was asked of the builder, beside profiles and GPUs."""
        said = {
            "opt level": None if self.opt_level is None else str(self.opt_level),
            "version compatible": "yes" if self.version_compatible else None,
            "hardware compatible": "yes" if self.hardware_compatible else None,
            "timing cache": None if self.timing_cache is None else self.timing_cache.name,
        }
        return {name: value for name, value in said.items() if value is not None}


def parse_profiles(text: str) -> tuple[Profile, ...]:
    """Profiles as `1:8:64` or, for several, `1:1:1,2:8:64`; `8` is `8:8:8`. Raises UsageError."""
    profiles = tuple(_profile(part) for part in text.split(","))
    twice = next((p for i, p in enumerate(profiles) if p in profiles[:i]), None)
    if twice is not None:
        raise UsageError(f"--batch {text}: {twice.min}:{twice.opt}:{twice.max} is in it twice")
    return profiles


def _profile(text: str) -> Profile:
    if not re.fullmatch(r"\d+(:\d+:\d+)?", text):
        raise UsageError(
            f"{text!r} are no batch sizes", hint="--batch MIN:OPT:MAX, as 1:8:64 or 1:1:1,2:8:64"
        )
    numbers = [int(part) for part in text.split(":")]
    least, best, most = numbers if len(numbers) == 3 else numbers * 3
    if not 1 <= least <= best <= most:
        raise UsageError(f"batch sizes {text!r} are not in order: 1 ≤ MIN ≤ OPT ≤ MAX", hint="--batch 1:8:64")
    return Profile(min=least, opt=best, max=most)


def parse_gpus(text: str) -> tuple[str, ...]:
    """Compute capabilities as `sm89,sm120`, each once, in their order; raises UsageError for other words."""
    names = [part.strip().lower() for part in text.split(",")]
    wrong = [name for name in names if not re.fullmatch(r"sm\d{2,3}", name)]
    if wrong:
        raise UsageError(
            f"{', '.join(map(repr, wrong))}: not a GPU's compute capability", hint="--gpu sm89,sm120"
        )
    return tuple(sorted(set(names), key=capability))


def capability(gpu: str) -> int:
    """`sm89` → 89."""
    return int(gpu.removeprefix("sm"))
