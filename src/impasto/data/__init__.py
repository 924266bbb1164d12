"""Images and captions on their way to batches: records, plan, latent cache, order."""
