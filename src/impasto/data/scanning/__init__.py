"""Finds the images of a subset, reads their headers and captions, and caches both."""
