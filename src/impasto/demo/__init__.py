"""The embedded default: a tiny trained model, pictures in a style new to it, and the settings."""
