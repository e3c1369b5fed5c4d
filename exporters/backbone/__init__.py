"""A checkpoint's stages as the backbone of a detector: graph, proof, bundle."""
