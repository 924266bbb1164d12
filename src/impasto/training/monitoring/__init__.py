"""Measures and records a running training: metrics, validation, previews, failures."""
