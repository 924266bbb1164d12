"""From cached latents, or images that change each time, to the batches of each step."""
