"""lct-deploy: a trained LCT-ResNet checkpoint to a production endpoint, proven equal to PyTorch."""

import os

__version__ = "0.1.0"

# From 1.29 on, onnxruntime sends telemetry unless this is set before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
