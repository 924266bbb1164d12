"""Reads pixels, masks and hashes of images from files, tars and tables."""
