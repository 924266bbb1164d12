"""Fingerprints that a saved state must match to be resumed: of model, data, settings and code."""
