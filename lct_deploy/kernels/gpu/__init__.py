"""The tail of a residual block on NVIDIA GPUs, Y = ReLU(X·σ(w⊙ẑ+b) + identity), in one pass.

`spec` says what is computed, `plan` how it is divided, `attention` computes it in Triton, `aot` compiles
it without a GPU, `torch_operator` is its PyTorch operator. `spec` and `plan` need no other package.
"""
