"""The latent cache and the text store: filling, claiming the work between programs, and cleanup.

The caches that sd-scripts puts beside images are read and written here too.
"""
