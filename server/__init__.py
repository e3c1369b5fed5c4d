"""The HTTP service over bundles; imports neither torch nor onnx."""
