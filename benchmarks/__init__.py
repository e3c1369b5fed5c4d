"""Measurements behind the project's figures; each writes raw rows under benchmarks/results/."""
