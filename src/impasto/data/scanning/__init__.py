"""Finds the images of a subset and reads their headers and words, remembering both."""
