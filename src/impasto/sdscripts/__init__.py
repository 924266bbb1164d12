"""The drop-in layer: sd-scripts' commands and flags, translated to Impasto's settings."""
