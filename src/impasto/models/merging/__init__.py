"""Merges of models, LoRAs added to a model, and LoRAs extracted from the difference of two."""
