"""What a measurement was made on: the columns that stand in every row of results."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lct_deploy.host import host_isa

_VENDORS = {"AuthenticAMD": "amd", "GenuineIntel": "intel"}
_STRENGTH = ("amx_int8", "avx512_vnni", "avx512f", "avx_vnni", "avx2", "sve", "asimddp", "asimd")

PACKAGES = ("torch", "onnx", "onnxruntime", "numpy", "pillow", "fastapi", "uvicorn")


def environment() -> dict[str, str]:
    """CPU, cores, system, package versions and commit."""
    return {
        "cpu": _cpu_model(),
        "isa": host_isa(),
        "cores": str(len(os.sched_getaffinity(0))),
        "load": f"{os.getloadavg()[0]:.1f}",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "commit": _commit(),
    }


def machine_name() -> str:
    """What the files of results that differ by processor are called by, such as amd-avx2."""
    isa = host_isa().split("+")
    strongest = next((name for name in _STRENGTH if name in isa), isa[0])
    return f"{_VENDORS.get(_cpuinfo('vendor_id'), platform.machine())}-{strongest.replace('_', '-')}"


def _cpu_model() -> str:
    return _cpuinfo("model name") or platform.processor()


def _cpuinfo(field: str) -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(field):
            return line.partition(":")[2].strip()
    return ""


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _commit() -> str:
    """The commit measured, marked where the tree has changes that it does not hold."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(  # noqa: S603 - a fixed command
        command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    return done.stdout.strip() or "unknown"
