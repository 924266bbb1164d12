"""The drop-in layer: sd-scripts' commands and flags, brought to our settings."""
