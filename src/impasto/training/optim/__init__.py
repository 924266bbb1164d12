"""Updates of weights: optimizers and their state, gradients, 16-bit weights, running averages.

Nothing here depends on the run's settings.
"""
