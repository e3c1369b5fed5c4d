"""Checkpoint → ONNX with the attention as one node → bundle, verified against PyTorch."""
