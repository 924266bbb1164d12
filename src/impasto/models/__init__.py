"""Stable Diffusion's parts: the table of families, loading, saving, text and latents."""
