"""Finds the files that are images, captions and masks, in a folder, a store or a metadata file.

Files are listed and named here; none is decoded.
"""
