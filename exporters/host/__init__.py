"""The graph laid out for the machine that serves it, by onnxruntime's own optimiser and our edits."""
