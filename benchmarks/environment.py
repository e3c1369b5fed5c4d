"""What a measurement was made on: the columns that stand in every row of results."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from lct_deploy.host import host_isa
from lct_deploy.runtime.flavours import driver_version, gpu_capability, gpu_name

_VENDORS = {"AuthenticAMD": "amd", "GenuineIntel": "intel"}
_STRENGTH = ("amx_int8", "avx512_vnni", "avx512f", "avx_vnni", "avx2", "sve", "asimddp", "asimd")

GPU_PACKAGES = (
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "cuda-bindings",
)
_QUERY = {
    "gpu_memory": "memory.total",
    "gpu_memory_used": "memory.used",
    "sm_clock": "clocks.sm",
    "sm_clock_max": "clocks.max.sm",
    "memory_clock": "clocks.mem",
    "memory_clock_max": "clocks.max.memory",
    "power_limit": "power.limit",
}
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
UNKNOWN = "unknown"  # what a machine does not tell, as virtual ones their governor
PACKAGES = ("torch", "triton", "onnx", "onnxruntime", "openvino", "numpy", "pillow", "fastapi", "uvicorn")


def environment() -> dict[str, str]:
    """CPU, cores, clocks, system, package versions and commit; of the GPU as well where there is one.

    Load and clocks are those of the moment in which this is called.
    """
    return {
        "cpu": _cpu_model(),
        "isa": host_isa(),
        "cores": str(len(os.sched_getaffinity(0))),
        **_clocks(),
        "load": f"{os.getloadavg()[0]:.1f}",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        **(gpu_environment() or {}),
    }


def machine_name() -> str:
    """What the files of results that differ by processor are called by, such as amd-avx2."""
    isa = host_isa().split("+")
    strongest = next((name for name in _STRENGTH if name in isa), isa[0])
    return f"{_VENDORS.get(_cpuinfo('vendor_id'), platform.machine())}-{strongest.replace('_', '-')}"


def gpu_environment() -> dict[str, str] | None:
    """The first GPU, its clocks and the packages that use it; None without one."""
    name, capability = gpu_name(), gpu_capability()
    if name is None or capability is None:
        return None
    return {
        "gpu": name,
        "driver": driver_version() or UNKNOWN,
        "capability": capability,
        **_nvidia_smi(),
        **{package: _version(package) for package in GPU_PACKAGES},
    }


def _nvidia_smi() -> dict[str, str]:
    """What only this program tells, UNKNOWN where it is not there."""
    command = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(_QUERY.values())}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - a fixed command
    except (OSError, subprocess.CalledProcessError):
        return dict.fromkeys(_QUERY, UNKNOWN)
    values = [value.strip() for value in done.stdout.splitlines()[0].split(",")]
    return dict(zip(_QUERY, values, strict=True))


def _clocks() -> dict[str, str]:
    """The governor of the first core, and MHz: the mean of the cores now, and their most."""
    governor = _GOVERNOR.read_text().strip() if _GOVERNOR.is_file() else UNKNOWN
    clocks: Any = psutil.cpu_freq()  # None on some machines, which its annotation does not say
    now, most = (clocks.current, clocks.max) if clocks is not None else (0.0, 0.0)
    return {
        "governor": governor,
        "mhz": f"{now:.0f}" if now else UNKNOWN,
        "mhz_max": f"{most:.0f}" if most else UNKNOWN,
    }


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
    return done.stdout.strip() or UNKNOWN
