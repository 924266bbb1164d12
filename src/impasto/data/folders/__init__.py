"""Which files of a folder, a store or a metadata file are images, words and masks.

Files are listed and named here; none is decoded.
"""
