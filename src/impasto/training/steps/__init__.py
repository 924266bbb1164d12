"""The training steps of a session: prefetch, forward and backward, CUDA graphs, update."""
