"""Writes models: files, folders, conversions, and new ones from a named architecture."""
