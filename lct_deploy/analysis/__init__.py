"""The paper's figures 1, 3 and 4: what attention does with the global context, on the user's own images."""
