"""The mathematics of diffusion training: no files, no configuration, no models."""
