"""Training, on a CPU or on GPUs: the paper's recipe, from data to a checkpoint that can be exported."""
