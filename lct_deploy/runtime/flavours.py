"""TensorRT in its two flavours, and the GPU under them; nothing else imports `tensorrt` or `tensorrt_rtx`.

TensorRT is for data-centre and other GPUs and builds engines where one is; TensorRT-RTX is for RTX GPUs
and builds for any of them, with or without one. Their Python interfaces are nearly the same.
"""

import ctypes
import functools
import importlib
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeGuard, get_args

from lct_deploy.errors import RuntimeUnavailableError

FlavourName = Literal["tensorrt", "tensorrt-rtx"]

# name → module, extra that installs it
_FLAVOURS: dict[FlavourName, tuple[str, str]] = {
    "tensorrt": ("tensorrt", "gpu"),
    "tensorrt-rtx": ("tensorrt_rtx", "rtx"),
}
_RTX_LIBRARIES = "tensorrt_rtx_libs"
_RTX_LINK = "libtensorrt_rtx.so"
_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, kw_only=True)
class Flavour:
    """An imported TensorRT: `module` is `tensorrt` or `tensorrt_rtx`, whose types are not annotated."""

    name: FlavourName
    version: str
    module: Any

    @property
    def is_rtx(self) -> bool:
        return self.name == "tensorrt-rtx"

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0])


def is_flavour(name: str) -> TypeGuard[FlavourName]:
    """Whether a runtime is one of the two."""
    return name in get_args(FlavourName)


@functools.cache
def load_flavour(name: FlavourName) -> Flavour:
    """Import a flavour; raises RuntimeUnavailableError where it is not installed or cannot be loaded."""
    module_name, extra = _FLAVOURS[name]
    if name == "tensorrt-rtx":
        _link_rtx_libraries()
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        what = "is not installed" if error.name == module_name else f"cannot be loaded: {error}"
        raise RuntimeUnavailableError(
            f"the package {module_name} {what}", hint=f"pip install 'lct-deploy[{extra}]'"
        ) from error
    return Flavour(name=name, version=module.__version__, module=module)


def driver_version() -> str | None:
    """The NVIDIA driver's version, as `580.95.05`; None where none is loaded."""
    try:
        found = re.search(r"\d+\.\d+(\.\d+)?", _DRIVER.read_text(encoding="utf-8"))
    except OSError:
        return None
    return found.group() if found else None


def gpu_capability() -> str | None:
    """The compute capability of the first GPU, as `sm90`; None without a GPU, driver or cuda-bindings."""
    return _of_first_gpu(_capability)


def gpu_name() -> str | None:
    """The model of the first GPU, as `NVIDIA H100 80GB HBM3`; None where `gpu_capability` is."""
    return _of_first_gpu(_name)


def _of_first_gpu(ask: Callable[[Any, Any], str]) -> str | None:
    try:
        driver = importlib.import_module("cuda.bindings.driver")
        (status,) = driver.cuInit(0)
        if status != 0:
            return None
        status, device = driver.cuDeviceGet(0)
        return ask(driver, device) if status == 0 else None
    except (ImportError, RuntimeError):  # the bindings raise RuntimeError where libcuda is not there
        return None


def _capability(driver: Any, device: Any) -> str:
    attribute = driver.CUdevice_attribute
    _, major = driver.cuDeviceGetAttribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device)
    _, minor = driver.cuDeviceGetAttribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device)
    return f"sm{major}{minor}"


def _name(driver: Any, device: Any) -> str:
    _, name = driver.cuDeviceGetName(256, device)
    return name.split(b"\0")[0].decode()


@functools.cache
def _link_rtx_libraries() -> "tempfile.TemporaryDirectory[str] | None":
    """Let RTX's parser find the library by the name that it looks for, which its wheel lacks.

    It looks beside itself for `libtensorrt_rtx.so`, and without it aborts the process at the first
    plugin node. So both libraries are loaded through links in a directory that has one of that name too;
    it must live as long as they do. The wheel then finds them loaded.
    """
    spec = find_spec(_RTX_LIBRARIES)
    if spec is None or spec.origin is None:
        return None  # installed by other means, which bring the link
    libraries = list(Path(spec.origin).parent.glob("lib*.so.*"))
    links = tempfile.TemporaryDirectory(prefix="lct-deploy-rtx.")
    for library in libraries:
        (Path(links.name) / library.name).symlink_to(library)
        if library.name.startswith(_RTX_LINK):
            (Path(links.name) / _RTX_LINK).symlink_to(library)
    for library in libraries:
        ctypes.CDLL(str(Path(links.name) / library.name))
    return links
