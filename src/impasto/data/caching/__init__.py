"""The latent cache and the text store: how they are filled, by whom, and kept.

The caches of sd-scripts beside the images are read and written here too.
"""
