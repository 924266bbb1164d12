"""The embedded demo: a tiny trained model, images in a style new to it, and the settings."""
