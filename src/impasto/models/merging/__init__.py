"""Sums and differences of models: mixtures, and LoRAs added to a model or extracted from two."""
