"""A network over labelled images, on any runtime: how often it is right, and how sure it may be."""
