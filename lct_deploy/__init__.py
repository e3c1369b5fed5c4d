"""lct-deploy: a trained LCT-ResNet checkpoint to a production endpoint, proven equal to PyTorch."""

import os
import sys
from typing import Any, cast

__version__ = "0.1.0"

# Runtimes that tell their makers of their use over the network unless they are stopped before their import:
# onnxruntime from 1.29 on by this setting, OpenVINO where this package is absent.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", cast("Any", None))
