"""Turns image files and captions into training batches: records, and one package per stage."""
