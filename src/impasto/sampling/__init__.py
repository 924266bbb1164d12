"""Generates images from prompts: for previews during training and for `impasto sample`."""
