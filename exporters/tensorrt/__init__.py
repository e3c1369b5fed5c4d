"""Graphs to TensorRT engines, in both of its flavours."""
