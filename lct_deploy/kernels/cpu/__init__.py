"""Operators for onnxruntime on the CPU: the tail of a residual block in one pass (`attention.cpp`).

Given to a session by `SessionOptions.register_custom_ops_library`. Installing the package builds the
library where there is a C++ compiler; without it the graphs of standard operators serve.
"""

import sysconfig
from pathlib import Path

DOMAIN = "lct"
VERSION = 1  # of the operators: what a graph imports of the domain

_LIBRARY = Path(__file__).with_name(f"attention{sysconfig.get_config_var('EXT_SUFFIX')}")


def op_library() -> Path | None:
    """The shared library; None where it was not built."""
    return _LIBRARY if _LIBRARY.is_file() else None
