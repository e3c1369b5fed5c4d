"""What a graph that was laid out for one machine depends on."""

import platform
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")

# The instruction sets that onnxruntime chooses its kernels and layouts by.
_RELEVANT = (
    "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx_vnni", "avx512_bf16",
    "amx_int8", "amx_bf16", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip


def host_isa() -> str:
    """The instruction sets of this machine as one word, such as `x86_64+avx+avx2+fma`."""
    features = _features()
    return "+".join([platform.machine(), *(name for name in _RELEVANT if name in features)])


def _features() -> set[str]:
    """CPU features as Linux lists them; none on other systems."""
    if not _CPUINFO.is_file():
        return set()
    for line in _CPUINFO.read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return set(value.split())
    return set()
