"""Other servers of images, each in an environment of its own, over the same graph of a bundle.

`python -m benchmarks.serving.peers install` makes the environments under build/peers, `… check BUNDLE`
starts each server once and compares its answers with ours.
"""
