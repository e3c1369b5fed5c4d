"""Training on the CPU or one GPU: enough for a real checkpoint."""
