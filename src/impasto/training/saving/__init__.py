"""Saves and restores training states, and exports models."""
