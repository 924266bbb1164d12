"""Evaluates the images of models against real ones: distances, similarity, copies, prompt tags."""
