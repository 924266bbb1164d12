"""Tensors by name, in and out of files: safe reading, the map of names, streamed writing."""
