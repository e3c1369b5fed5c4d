"""Kernels of our own: what a runtime loads in place of the graph's standard operators."""
