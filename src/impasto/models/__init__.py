"""The models of Stable Diffusion: the table of families, loading, saving, text and latents."""
