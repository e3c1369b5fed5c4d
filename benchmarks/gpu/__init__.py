"""Everything that runs on an NVIDIA GPU, side by side: `python -m benchmarks.gpu`."""
