"""Steps of a session: prefetched batches, forward and backward, CUDA graphs, updates."""
