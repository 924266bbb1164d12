"""Makes the batches of each step, from cached latents or images that vary each time."""
